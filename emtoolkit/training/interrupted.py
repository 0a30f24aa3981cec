"""A signal that comes when training has ended, while W&B is waited for. Nothing here imports torch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from emtoolkit.launch import signal_of
from emtoolkit.saving.signals import TrainingInterrupted


@contextmanager
def as_training_interrupted(last_step: Callable[[], int | None]) -> Iterator[None]:
    """A signal that comes after the last step is one sentence like a signal in training: everything is saved.

    `last_step` returns None while something is still to be trained or saved.
    """
    try:
        yield
    except TrainingInterrupted:
        raise
    except KeyboardInterrupt as interruption:
        if (step := last_step()) is None:
            raise
        raise TrainingInterrupted(step, signal_of(interruption)) from None
