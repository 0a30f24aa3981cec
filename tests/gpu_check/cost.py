"""What a save costs a GPU: figures, which no bar judges."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from transformers import TrainerCallback

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.saving.overlap import Copying
from emtoolkit.training.determinism import deterministic_algorithms
from tests.gpu_check.device import Device, Outcome
from tests.gpu_check.trainings import make_model, make_trainer

_STEPS, _EVERY = 64, 8
_WARM_UP = 5
# Of a copy beside the next step the first save is the rehearsal, and after the last step none is made.
_SAVED = range(2 * _EVERY, _STEPS, _EVERY)


class Clock(TrainerCallback):
    """The times at which steps begin, with everything before them finished on the device."""

    changes_weights = False

    def __init__(self, device: Device) -> None:
        self._device = device
        self.begun: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._device.synchronize()
        self.begun.append(time.perf_counter())

    @property
    def milliseconds(self) -> list[float]:
        """From the beginning of each step but the last to that of the next."""
        return [1e3 * (after - before) for before, after in pairwise(self.begun)]

    @property
    def usual(self) -> float:
        """The median of a step after the first ones."""
        return statistics.median(self.milliseconds[_WARM_UP:])

    def added(self) -> float:
        """What a save adds to its own step and to the next, which may wait for the copy: the median of all saves."""
        return statistics.median(
            self.milliseconds[step - 1] + self.milliseconds[step] - 2 * self.usual for step in _SAVED
        )


class InThread:
    """The milliseconds that the training thread spends in our part of each step, without waits for the disk."""

    def __init__(self) -> None:
        self.spent: dict[int, float] = {}
        self.waits = 0
        self._step = 0

    def watch(self) -> ExitStack:
        """Time what the training thread calls at a save and before an update, until the stack is closed."""
        stack = ExitStack()
        for name in ("contents", "before_update"):
            stack.enter_context(patch.object(Copying, name, self._timed(getattr(Copying, name))))
        return stack

    def _timed(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def timed(copying: Copying, *args: Any) -> Any:
            buffers = copying._buffers
            before, waits, began = buffers.waited_seconds, buffers.waits, time.perf_counter()
            result = inner(copying, *args)
            taken = time.perf_counter() - began - (buffers.waited_seconds - before)
            self.waits += buffers.waits - waits
            self._step = args[0] if args else self._step
            self.spent[self._step] = self.spent.get(self._step, 0.0) + 1e3 * taken
            return result

        return timed

    def median(self) -> float:
        return statistics.median(self.spent[step] for step in _SAVED)


def check_stall(device: Device) -> Iterator[Outcome]:
    """A training of all weights that saves every eighth step, in both ways, between two that save none."""
    ways = {"in the training thread": False, "beside the next step": True}
    names = {
        "step": "a step that saves nothing, at first and at last",
        **{f"added {way}": f"a copy {way} adds to the step and the next" for way in ways},
        **{f"thread {way}": f"a copy {way} takes of the training thread" for way in ways},
        "memory": "peak of pinned memory",
        "deterministic": "deterministic kernels",
    }
    if not device.is_gpu:
        yield from (Outcome.skipped(name, "no GPU") for name in names.values())
        return
    # The peak of earlier checks, which copy gigabytes, is not that of a training.
    getattr(torch.cuda, "reset_peak_host_memory_stats", int)()
    size = sum(p.numel() * p.element_size() for p in make_model(device, "full", torch.bfloat16).parameters())
    first = _clocked(device, "first", str(_STEPS))
    notes = {}
    for way, overlap in ways.items():
        in_thread = InThread()
        with in_thread.watch():
            clock = _clocked(device, way.replace(" ", "-"), f"every:{_EVERY}", overlap=overlap)
        notes[f"added {way}"] = f"{clock.added():.2f} ms, the GPU awaited; {size / 1e6:.0f} MB a copy"
        waits = f"{in_thread.waits} of {_STEPS // _EVERY} saves waited for the disk"
        notes[f"thread {way}"] = f"{in_thread.median():.2f} ms; {waits}"
    peak = getattr(torch.cuda, "host_memory_stats", dict)().get("allocated_bytes.peak", 0)
    last = _clocked(device, "last", str(_STEPS))
    notes["step"] = f"{first.usual:.1f} / {last.usual:.1f} ms"
    notes["memory"] = f"{peak / size:.2f} copies of the weights; two are in flight"
    with deterministic_algorithms(True):
        exact = _clocked(device, "deterministic", str(_STEPS))
    usual = (first.usual + last.usual) / 2
    notes["deterministic"] = f"{exact.usual / usual:.2f} x the time of a step with default kernels"
    yield from (Outcome(name, "INFO", notes[key]) for key, name in names.items())


def _clocked(device: Device, name: str, schedule: str, *, overlap: bool = False) -> Clock:
    clock = Clock(device)
    ours = ScheduledCheckpointCallback(schedule, publish=False, resume_every="never", overlap=overlap)
    callbacks: Sequence[TrainerCallback] = [clock, ours]
    make_trainer(device, device.home / f"stall-{name}", callbacks, kind="full", steps=_STEPS).train()
    return clock
