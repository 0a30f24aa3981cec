"""The call of a Trainer's `train`, around which the Trainer sends no event: where it resumes, and how it ended.

`watch_trainers` puts a function around the method of the class and of each subclass that has its own, because no event
names the Trainer before the call has begun, and a loop of one's own may send no events at all. The function passes
everything on, and does nothing for a Trainer without a `FollowsTraining`.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from inspect import Parameter, signature
from types import FunctionType
from typing import Any, Protocol, runtime_checkable
from weakref import WeakSet

from transformers import Trainer

from emtoolkit.saving.own_code import put_around, unwatched
from emtoolkit.saving.stock_wandb import outlive_wandb

logger = logging.getLogger(__name__)

_RESUME = "resume_from_checkpoint"
# The callbacks whose training has not begun, by their identity: one that nobody keeps must be missed, too.
_unused: set[int] = set()
# The Trainers of which it was said that they send no events: a method that calls that of its base is watched twice.
_silent: WeakSet[Trainer] = WeakSet()


@runtime_checkable
class FollowsTraining(Protocol):
    """A callback that is notified when `Trainer.train` is called."""

    trainings: int
    """The number of trainings that have begun."""

    def resume_from(self, trainer: Trainer, asked: Any) -> Any:
        """The value of `resume_from_checkpoint` in place of the one that was `asked` for."""

    def training_failed(self, trainer: Trainer, error: BaseException) -> None:
        """`error` ended the training of `trainer`; this method raises no other error."""

    def training_returned(self, trainer: Trainer) -> None:
        """The training of `trainer` has returned."""


def watch_trainers(made: object = None) -> None:
    """Let the callbacks of every Trainer hear of its calls of `train`; a second call changes nothing.

    `made` is a new callback, whose training is expected to begin.
    """
    if made is not None:
        _unused.add(id(made))
    for kind in _with_subclasses(Trainer):
        original = vars(kind).get("train")
        if isinstance(original, FunctionType) and unwatched(original) is original:
            kind.train = _watched(original)  # type: ignore[method-assign]  # see the docstring of this module


def has_begun(callback: FollowsTraining) -> None:
    """Note that a training of `callback` has begun."""
    callback.trainings += 1
    _unused.discard(id(callback))


def _with_subclasses(kind: type[Trainer]) -> Iterator[type[Trainer]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _with_subclasses(subclass)


def _watched(original: Callable[..., Any]) -> Callable[..., Any]:
    place = _place_of_resume(original)

    @wraps(original)
    def train(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        followers = _followers(self)
        if not followers:
            _miss_callbacks(self)
            return original(self, *args, **kwargs)
        outlive_wandb(self.callback_handler.callbacks)
        args, kwargs = _resumed(self, followers, place, args, kwargs)
        begun = [callback.trainings for callback in followers]
        try:
            result = original(self, *args, **kwargs)
            for callback in followers:
                callback.training_returned(self)
        except BaseException as error:
            for callback in _followers(self):
                callback.training_failed(self, error)
            raise
        if begun == [callback.trainings for callback in followers] and self not in _silent:
            _silent.add(self)
            logger.warning(
                "%s has trained without the event on_train_begin, so no checkpoint was saved; a training loop of your "
                "own calls the methods of trainer.callback_handler: on_train_begin, on_step_begin, on_step_end and "
                "on_train_end",
                type(self).__name__,
            )
        return result

    return put_around(original, train)


def _place_of_resume(original: Callable[..., Any]) -> int | None:
    """The position of `resume_from_checkpoint` among the positional arguments after `self`, None if it has none."""
    positional = [
        name
        for name, parameter in signature(original).parameters.items()
        if parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    ]
    return positional.index(_RESUME) - 1 if _RESUME in positional else None


def _resumed(
    trainer: Trainer,
    followers: Sequence[FollowsTraining],
    place: int | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with the value of `resume_from_checkpoint` that `followers` give."""

    def answered(asked: Any) -> Any:
        for callback in followers:
            asked = callback.resume_from(trainer, asked)
        return asked

    if _RESUME in kwargs:
        return args, {**kwargs, _RESUME: answered(kwargs[_RESUME])}
    if place is not None and place < len(args):
        return (*args[:place], answered(args[place]), *args[place + 1 :]), dict(kwargs)
    return args, dict(kwargs)


def _miss_callbacks(trainer: Trainer) -> None:
    """Say that `trainer` has no callback, if one was made that no training has used."""
    if _unused:
        logger.warning(
            "%s trains without the ScheduledCheckpointCallback that was made, so no scheduled step will be saved; pass "
            "callbacks on to Trainer.__init__, or call trainer.add_callback before trainer.train()",
            type(trainer).__name__,
        )
        _unused.clear()


def _followers(trainer: Trainer) -> list[FollowsTraining]:
    return [each for each in trainer.callback_handler.callbacks if isinstance(each, FollowsTraining)]
