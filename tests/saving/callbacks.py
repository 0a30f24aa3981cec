"""Callbacks for trainings under test: one that saves, without resume saves, and others that stop or end a training."""

import os
from typing import Any

from transformers import TrainerCallback

from emtoolkit import ScheduledCheckpointCallback


def callback(schedule: str, **options: Any) -> ScheduledCheckpointCallback:
    """A `ScheduledCheckpointCallback` that never saves a resume state unless `options` say so."""
    return ScheduledCheckpointCallback(schedule, **({"resume_every": "never"} | options))


def wait_for_disk(ours: ScheduledCheckpointCallback) -> None:
    """Wait until every save that has begun is on disk; does nothing in processes that do not save."""
    if ours._session is not None:
        ours._session.disk.drain()


class StopAt(TrainerCallback):
    """Stops training at `step`, after the ScheduledCheckpointCallback has run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True


class FailAt(TrainerCallback):
    """Ends training with an exception at one event of one step."""

    def __init__(self, step: int, event: str) -> None:
        self.step = step
        setattr(self, event, self._fail)

    def _fail(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("a fault of the training's own")


class Die(TrainerCallback):
    """Ends the process at `step` without cleanup, after every save that has begun is on disk."""

    def __init__(self, step: int, ours: ScheduledCheckpointCallback) -> None:
        self.step = step
        self.ours = ours

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            wait_for_disk(self.ours)
            os._exit(3)
