"""Progress of a training: a bar over its steps, or one log line for each logging interval."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emtoolkit.progress import Bar, Progress

logger = logging.getLogger(__name__)


class ProgressCallback(TrainerCallback):
    """Takes the place of the Trainer's own progress bar and of its printed metrics.

    With a `bar`, the bar shows the steps, the newest loss and the time left. Without one, each logging interval logs
    a line with the same values. A context manager: an exception that ends the training removes the bar. `last` is the
    step at which the training stops, None if it goes to its end.
    """

    def __init__(
        self, bar: Bar | None = None, clock: Callable[[], float] = time.monotonic, *, last: int | None = None
    ) -> None:
        self._bar = bar
        self._last = last
        self._clock = clock
        self._open_bar = ExitStack()
        self._show: Progress | None = None
        self._loss = ""
        self._begun_at = 0.0
        self._first_step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open_bar.close()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar; a training that is attempted again with a smaller batch opens a new one."""
        self._open_bar.close()
        self._begun_at, self._first_step = self._clock(), state.global_step
        if self._bar is not None and state.is_local_process_zero:
            self._show = self._open_bar.enter_context(self._bar())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the bar."""
        if self._show is not None:
            self._show(f"training{self._loss}{self._time_left(state)}", state.global_step, self._end(state))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Note the loss, and log it where there is no bar."""
        for name, label in (("loss", "loss"), ("eval_loss", "evaluation loss")):
            if logs is None or name not in logs or not state.is_local_process_zero:
                continue
            loss = f", {label} {float(logs[name]):.4g}"
            if name == "loss":
                self._loss = loss
            if self._show is None:
                logger.info("step %d of %d%s%s", state.global_step, self._end(state), loss, self._time_left(state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self._open_bar.close()

    def _end(self, state: TrainerState) -> int:
        return state.max_steps if self._last is None else self._last

    def _time_left(self, state: TrainerState) -> str:
        done, left = state.global_step - self._first_step, self._end(state) - state.global_step
        if done <= 0 or left <= 0:
            return ""
        return f", {_as_clock((self._clock() - self._begun_at) / done * left)} left"


def _as_clock(seconds: float) -> str:
    """`1:05` or `2:00:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
