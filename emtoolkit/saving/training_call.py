"""The call of `Trainer.train`, around which the Trainer sends no event: where it resumes, and that it has failed.

`watch_trainers` puts a function around the method of the class, because no event names the Trainer before the call has
begun. The function passes everything on, and does nothing for a Trainer without a `FollowsTraining`.
"""

from functools import wraps
from typing import Any, Protocol, runtime_checkable

from transformers import Trainer

from emtoolkit.saving.stock_wandb import outlive_wandb


@runtime_checkable
class FollowsTraining(Protocol):
    """A callback that hears of the call of `Trainer.train`."""

    def resume_from(self, trainer: Trainer, asked: Any) -> Any:
        """The value of `resume_from_checkpoint` in place of the one that was `asked` for."""

    def training_failed(self, trainer: Trainer, error: BaseException) -> None:
        """`error` ended the training of `trainer`; this method raises no other error."""


def watch_trainers() -> None:
    """Let the callbacks of every Trainer hear of its calls of `train`; a second call changes nothing."""
    original = Trainer.train
    if getattr(original, "__watched__", False):
        return

    @wraps(original)
    def train(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        asked, others = (args[0], args[1:]) if args else (kwargs.pop("resume_from_checkpoint", None), ())
        if followers := _followers(self):
            outlive_wandb(self.callback_handler.callbacks)
        for callback in followers:
            asked = callback.resume_from(self, asked)
        try:
            return original(self, asked, *others, **kwargs)
        except BaseException as error:
            for callback in _followers(self):
                callback.training_failed(self, error)
            raise

    train.__watched__ = True  # type: ignore[attr-defined]  # functions take any attribute
    Trainer.train = train  # type: ignore[method-assign]  # see the docstring of this module


def _followers(trainer: Trainer) -> list[FollowsTraining]:
    return [each for each in trainer.callback_handler.callbacks if isinstance(each, FollowsTraining)]
