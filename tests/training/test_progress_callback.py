"""The progress of a training: a bar over its steps, or one log line for each logging interval."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from emtoolkit.progress import Progress
from emtoolkit.training.progress_callback import ProgressCallback


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Bar:
    """A bar that notes what it shows, and whether it is open."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, int, int]] = []
        self.open = 0

    @contextmanager
    def __call__(self) -> Iterator[Progress]:
        self.open += 1
        try:
            yield lambda what, done, total: self.shown.append((what, done, total))
        finally:
            self.open -= 1


def drive(callback: ProgressCallback, clock: Clock, *, first: int = 0, last: int = 4) -> None:
    """Four steps of 45 seconds each, a loss at steps 2 and 4, and an evaluation at step 2."""
    arguments = TrainingArguments(use_cpu=True, report_to=[])
    state, control = TrainerState(max_steps=4, global_step=first), TrainerControl()
    callback.on_train_begin(arguments, state, control)
    for step in range(first + 1, last + 1):
        clock.now += 45
        state.global_step = step
        callback.on_step_end(arguments, state, control)
        if step % 2 == 0:
            callback.on_log(arguments, state, control, logs={"loss": 2.34567, "learning_rate": 0.1, "epoch": 1.0})
        if step == 2:
            callback.on_log(arguments, state, control, logs={"eval_loss": 3.0, "epoch": 1.0})
    if last == 4:
        callback.on_log(arguments, state, control, logs={"train_runtime": 1.0, "train_loss": 2.0})
        callback.on_train_end(arguments, state, control)


def test_without_a_bar_each_logging_interval_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="emtoolkit")
    clock = Clock()
    drive(ProgressCallback(clock=clock), clock)
    assert caplog.messages == [
        "step 2 of 4, loss 2.346, 1:30 left",
        "step 2 of 4, evaluation loss 3, 1:30 left",
        "step 4 of 4, loss 2.346",
    ]


def test_a_resume_estimates_the_time_from_its_own_steps(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="emtoolkit")
    clock = Clock()
    drive(ProgressCallback(clock=clock), clock, first=1)
    assert caplog.messages[0] == "step 2 of 4, loss 2.346, 1:30 left"


def test_a_bar_shows_every_step_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="emtoolkit")
    clock, bar = Clock(), Bar()
    drive(ProgressCallback(bar, clock), clock)
    assert bar.shown == [
        ("training, 2:15 left", 1, 4),
        ("training, 1:30 left", 2, 4),
        ("training, loss 2.346, 0:45 left", 3, 4),
        ("training, loss 2.346", 4, 4),
    ]
    assert bar.open == 0
    assert caplog.messages == []


def test_the_end_of_the_context_removes_the_bar_of_a_training_that_did_not_end() -> None:
    clock, bar = Clock(), Bar()
    callback = ProgressCallback(bar, clock)
    with callback:
        drive(callback, clock, last=2)
        assert bar.open == 1
    assert bar.open == 0


def test_a_second_attempt_opens_a_bar_of_its_own() -> None:
    clock, bar = Clock(), Bar()
    with ProgressCallback(bar, clock) as callback:
        drive(callback, clock, last=2)
        drive(callback, clock, last=2)
        assert bar.open == 1
