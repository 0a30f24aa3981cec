"""What a save costs a GPU: figures, which no bar judges."""

import statistics
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from transformers import TrainerCallback

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.saving.snapshot import Snapshot, SnapshotBuffers
from emtoolkit.training.determinism import deterministic_algorithms
from tests.gpu_check.device import Device, Outcome
from tests.gpu_check.trainings import make_model, make_trainer

_STEPS = 40
_WARM_UP = 5


class Clock(TrainerCallback):
    """The times at which steps begin, with everything before them finished on the device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.begun: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._device.synchronize()
        self.begun.append(time.perf_counter())

    @property
    def milliseconds(self) -> float:
        """The median of a step after the first ones."""
        return 1e3 * statistics.median(after - before for before, after in pairwise(self.begun[_WARM_UP:]))


def check_stall(device: Device) -> Iterator[Outcome]:
    """A training of all weights that saves every eighth step, between two that save none."""
    names = (
        "a step: none saved, every 8th saved, none saved",
        "the training thread in a save",
        "waits for the disk",
        "peak of pinned memory",
        "deterministic kernels",
    )
    if not device.is_gpu:
        yield from (Outcome.skipped(name, "no GPU") for name in names)
        return
    seconds: list[float] = []
    waited: list[float] = []
    take = SnapshotBuffers.take

    def timed(self: SnapshotBuffers, step: int) -> Snapshot:
        began, before = time.perf_counter(), self.waited_seconds
        snapshot = take(self, step)
        waited.append(self.waited_seconds - before)
        seconds.append(time.perf_counter() - began - waited[-1])
        return snapshot

    # The peak of earlier checks, which copy gigabytes, is not that of a training.
    getattr(torch.cuda, "reset_peak_host_memory_stats", int)()
    medians, in_save, waiting = [], 0.0, 0
    nothing = str(_STEPS)
    for number, schedule in enumerate((nothing, "every:8", nothing, nothing)):
        clock = Clock(device)
        ours = ScheduledCheckpointCallback(schedule, publish=False, resume_every="never")
        seconds.clear()
        waited.clear()
        with patch.object(SnapshotBuffers, "take", timed), deterministic_algorithms(number == 3):
            make_trainer(device, device.home / f"stall-{number}", [clock, ours], kind="full", steps=_STEPS).train()
        medians.append(clock.milliseconds)
        if number == 1:
            in_save, waiting = 1e3 * statistics.median(seconds), sum(each > 0 for each in waited)
    size = sum(p.numel() * p.element_size() for p in make_model(device, "full", torch.bfloat16).parameters())
    yield Outcome(names[0], "INFO", f"{' / '.join(f'{ms:.1f}' for ms in medians[:3])} ms, {size / 1e6:.0f} MB a copy")
    yield Outcome(names[1], "INFO", f"{in_save:.2f} ms, without what the GPU waits for the copy on its stream")
    yield Outcome(names[2], "INFO", f"in {waiting} of {_STEPS // 8} saves")
    peak = getattr(torch.cuda, "host_memory_stats", dict)().get("allocated_bytes.peak", 0)
    yield Outcome(names[3], "INFO", f"{peak / size:.2f} copies of the weights; two are in flight")
    plain = (medians[0] + medians[2]) / 2
    yield Outcome(names[4], "INFO", f"{medians[3] / plain:.2f} x the time of a step with default kernels")
