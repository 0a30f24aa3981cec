"""The end of a training that trains one stretch: no later step is wanted, and the trajectory has not ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


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
def until_the_stretch_ends() -> Iterator[None]:
    """Where `StopAfter` ends a training, go on after the block."""
    try:
        yield
    except _StretchTrained:
        return
