"""The same training twice, and a resume: the same bytes with deterministic kernels, a named difference without."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.checkpoints.manifest import Manifest
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.recomputed import LARGEST_NOISE, compare_recomputed
from emtoolkit.saving.resume_state import newest_resume_state
from emtoolkit.saving.signals import TrainingInterrupted
from emtoolkit.training.determinism import deterministic_algorithms
from tests.gpu_check.device import Device, Outcome
from tests.gpu_check.trainings import digests, make_trainer
from tests.saving.callbacks import wait_for_disk

_HANG_SECONDS = 170
_STEPS = 9
_SIGNALLED_AT = 7


class Signal(TrainerCallback):
    """Sends `number` to this process at the end of step 7, when the saves that have begun are on disk."""

    def __init__(self, number: int, ours: ScheduledCheckpointCallback) -> None:
        self._number = number
        self._ours = ours

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == _SIGNALLED_AT:
            wait_for_disk(self._ours)
            os.kill(os.getpid(), self._number)


def check_repeat(device: Device) -> Iterator[Outcome]:
    """Two trainings on two schedules, with each kernel of attention, with and without deterministic kernels."""
    for attention in ("sdpa",) if device.small else ("sdpa", "eager"):
        for deterministic in (False, True):
            runs = []
            for schedule in ("0,every:3", "0,every:1"):
                directory = device.home / f"repeat-{attention}-{deterministic}-{schedule[-1]}"
                with deterministic_algorithms(deterministic):
                    train(device, directory, schedule, attention=attention)
                runs.append(directory)
            kernels = "deterministic" if deterministic else "default"
            name = f"twice, two schedules, {attention}, {kernels} kernels"
            yield _same(name, *runs, exact=deterministic or not device.is_gpu)


def check_resume(device: Device) -> Iterator[Outcome]:
    """A training that a signal ends at step 7, then resumed; deterministic kernels make the bytes comparable."""
    whole = device.home / "whole"
    _train(device, whole)
    for number in (signal.SIGINT, signal.SIGKILL):
        name = f"{number.name} at step {_SIGNALLED_AT}, resumed"
        if number == signal.SIGKILL and not device.processes:
            yield Outcome.skipped(name, "this form starts no processes; make crash-test kills at every event")
            continue
        directory = device.home / number.name
        _train(device, directory, number)
        state = newest_resume_state(directory)
        _train(device, directory, resume=state)
        yield _same(f"{name} from {'the start' if state is None else state.name}", whole, directory, exact=True)


def _same(name: str, one: Path, other: Path, *, exact: bool) -> Outcome:
    """Whether the steps that both directories hold are equal, or, unless `exact`, as near as kernels explain."""
    digests_of_one, digests_of_other = digests(one), digests(other)
    shared = sorted(digests_of_one.keys() & digests_of_other.keys())
    differ = [step for step in shared if digests_of_one[step] != digests_of_other[step]]
    if not differ:
        return Outcome.of(name, len(shared) > 2, f"{len(shared)} equal steps")
    manifests = [Manifest.read(directory / f"checkpoint-{differ[-1]}") for directory in (one, other)]
    paths = [directory / f"checkpoint-{differ[-1]}" for directory in (one, other)]
    try:
        difference = compare_recomputed(paths[0], manifests[0], paths[1], manifests[1]).weights
    except CheckpointError as error:
        return Outcome.of(name, False, error)
    if difference is None:
        return Outcome.of(name, False, "equal weights in other bytes")
    near = difference.share is not None and difference.share <= LARGEST_NOISE
    share = "" if difference.share is None else f" ({100 * difference.share:.2g} % of the way)"
    note = f"{len(differ)} of {len(shared)} steps differ, by up to {difference.largest:.1e}{share}"
    return Outcome.of(name, near and not exact, note)


def _train(device: Device, directory: Path, number: int = 0, resume: Path | None = None) -> None:
    """Train with deterministic kernels, in a process of its own if the device has processes."""
    if not device.processes:
        with deterministic_algorithms(True):
            train(device, directory, "0,every:2", number, resume)
        return
    words = [str(device.home), directory.name, device.name, str(number), "" if resume is None else str(resume)]
    command = [sys.executable, "-m", "tests.gpu_check.repeat", *words, *(["--small"] if device.small else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_HANG_SECONDS, check=False)
    if done.returncode not in (0, -number):
        raise RuntimeError(f"a training ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")


def train(
    device: Device,
    directory: Path,
    schedule: str,
    number: int = 0,
    resume: Path | None = None,
    attention: str | None = None,
) -> None:
    """Train into `directory`, until the signal `number` if given; `resume` is a resume checkpoint."""
    ours = ScheduledCheckpointCallback(schedule, publish=False, resume_every="3 steps")
    trainer = make_trainer(device, directory, [ours, *([Signal(number, ours)] if number else [])], steps=_STEPS)
    if attention is not None:
        trainer.model.get_base_model().set_attn_implementation(attention)
    try:
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    except TrainingInterrupted:
        if number != signal.SIGINT:
            raise


def main() -> None:
    """The process of its own: one training with deterministic kernels."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    for word in ("home", "directory", "device", "signal", "resume"):
        parser.add_argument(word)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    device = Device(given.device, Path(given.home), small=given.small)
    with deterministic_algorithms(True):
        resume = Path(given.resume) if given.resume else None
        train(device, device.home / given.directory, "0,every:2", int(given.signal), resume)


if __name__ == "__main__":
    main()
