"""Of which step the live weights are when an exception ends a training, as far as anything shows.

Weights that something changes between two optimizer steps are those of no step: SAM trains at a point beside them, an
evaluation may look at averaged ones. Writing in place counts in the version of a tensor, and other memory has another
address. Nothing shows a write through `param.data`, so weights are taken for those of no step if the exception left a
method of the user's own that usually writes like that.
"""

from collections.abc import Iterable
from operator import attrgetter
from types import TracebackType
from typing import Any

from torch import Tensor

from emtoolkit.saving.own_code import is_own_file

# Methods of a Trainer that replace or change weights for a moment.
_MAY_CHANGE_WEIGHTS = {"training_step", "evaluate", "evaluation_loop", "prediction_loop", "prediction_step", "predict"}
_versions = attrgetter("_version")


class WholeStep:
    """The step whose weights `tensors` are: `step` until an update or another change.

    A look reads two numbers of each tensor, and there is one look in each step.
    """

    def __init__(self, tensors: Iterable[Tensor], step: int) -> None:
        self._tensors = list(tensors)
        self.is_now(step)

    def is_now(self, step: int) -> None:
        """The tensors hold the weights of `step`."""
        self._step: int | None = step
        self._seen: tuple[list[int], list[int]] | None = self._look()

    def was_updated(self, step: int) -> None:
        """The optimizer has made the weights of `step`; `is_now` follows at the end of the step."""
        self._step, self._seen = step, None

    def is_being_changed(self) -> None:
        """The optimizer begins to change the weights."""
        self._step = None

    def is_unchanged(self) -> bool:
        """Whether nothing that shows has changed the weights since `is_now`."""
        return self._step is not None and self._seen is not None and self._seen == self._look()

    def at_failure(self, error: BaseException | None) -> int | None:
        """The step whose weights the tensors still hold after `error` has ended the training; None if of no step."""
        if self._seen not in (None, self._look()) or (error is not None and _left_a_method_that_changes_weights(error)):
            return None
        return self._step

    def _look(self) -> tuple[list[int], list[int]]:
        return list(map(_versions, self._tensors)), list(map(Tensor.data_ptr, self._tensors))


def _left_a_method_that_changes_weights(error: BaseException) -> bool:
    return any(
        frame.f_code.co_name in _MAY_CHANGE_WEIGHTS
        and is_own_file(str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename)
        for frame in _frames(error.__traceback__)
    )


def _frames(traceback: TracebackType | None) -> Iterable[Any]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next
