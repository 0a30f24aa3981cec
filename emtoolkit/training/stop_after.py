"""The end of a training that trains one stretch: no later step is wanted, and the trajectory has not ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emtoolkit.saving.callback import ScheduledCheckpointCallback
from emtoolkit.schedules.save_options import OnError


class _StretchTrained(Exception):
    """The last step of the stretch is saved."""


class StopAfter(TrainerCallback):
    """Ends a training after `step`; stands after the callback that saves.

    A Trainer that is told to stop would end the trajectory there, with the alias `final` on that step.
    """

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the training loop once the step is saved, logged and evaluated."""
        if state.global_step >= self._step:
            raise _StretchTrained


@contextmanager
def until_stretch_ends(callback: ScheduledCheckpointCallback, on_error: OnError) -> Iterator[None]:
    """Where `StopAfter` ends a training, go on after the block.

    Raises:
        Exception: the first error of a save of `callback`, as at the end of a whole training, if `on_error` is `raise`.
    """
    try:
        yield
    except _StretchTrained:
        if callback.failures and on_error == "raise":
            raise callback.failures[0] from None
