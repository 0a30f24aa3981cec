"""The checkpoint of an interruption is marked, is no step of the trajectory, and goes away once it is passed."""

import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from emtoolkit import Trajectory
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.manifest import MANIFEST
from emtoolkit.checkpoints.publications import Publications, add_saved_for
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.signals import TrainingInterrupted
from tests.saving.callbacks import FailAt, callback
from tests.saving.trainings import bytes_of, make_trainer, saved_steps


class SignalIn(TrainerCallback):
    """Sends SIGTERM while the step after `step` is prepared, so that training stops after `step` + 1."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step - 1:
            signal.raise_signal(signal.SIGTERM)


def interrupted(directory: Path, step: int, schedule: str = "0,4,8", *, resume: bool = False) -> None:
    """Train until a signal stops the training after `step`."""
    with pytest.raises(TrainingInterrupted, match=f"after step {step}"):
        make_trainer(directory, [callback(schedule), SignalIn(step)]).train(resume_from_checkpoint=resume)


def resumed(directory: Path, schedule: str = "0,4,8") -> None:
    make_trainer(directory, [callback(schedule)]).train(resume_from_checkpoint=True)


def reasons(directory: Path) -> dict[int, str]:
    return {info.step: info.saved_for for info in list_checkpoints(directory)}


def test_the_step_of_an_interruption_is_marked_and_no_step_of_the_trajectory(tmp_path: Path) -> None:
    interrupted(tmp_path, 6)
    assert reasons(tmp_path) == {0: "schedule", 4: "schedule", 6: "interruption"}
    assert [Publications.read(tmp_path).metadata[step].get("saved_for") for step in (0, 4, 6)] == [
        None,
        None,
        "interruption",
    ]
    assert Trajectory.open(tmp_path).steps == (0, 4)
    assert Trajectory.open(tmp_path, interrupted=True).steps == (0, 4, 6)


def test_two_directories_of_one_schedule_hold_the_same_whatever_interrupted_them(tmp_path: Path) -> None:
    make_trainer(tmp_path / "whole", [callback("0,4,8")]).train()
    interrupted(tmp_path / "stopped", 2)
    interrupted(tmp_path / "stopped", 3, resume=True)
    assert reasons(tmp_path / "stopped") == {0: "schedule", 2: "interruption", 3: "interruption"}
    interrupted(tmp_path / "stopped", 5, resume=True)
    assert reasons(tmp_path / "stopped") == {0: "schedule", 4: "schedule", 5: "interruption"}
    resumed(tmp_path / "stopped")
    whole, stopped = (
        {name: content for name, content in bytes_of(tmp_path / each).items() if name.startswith("checkpoint-")}
        for each in ("whole", "stopped")
    )
    assert stopped == whole


def test_an_interruption_at_a_scheduled_step_saves_a_scheduled_step(tmp_path: Path) -> None:
    interrupted(tmp_path, 4)
    assert reasons(tmp_path) == {0: "schedule", 4: "schedule"}
    resumed(tmp_path)
    assert saved_steps(tmp_path) == [0, 4, 8]


@pytest.mark.parametrize(("schedule", "steps"), [("0,6,8", [0, 4, 6, 8]), ("every:2", [0, 4, 6, 8])])
def test_a_schedule_that_contains_the_step_keeps_it(schedule: str, steps: list[int], tmp_path: Path) -> None:
    interrupted(tmp_path, 6)
    resumed(tmp_path, schedule)
    assert reasons(tmp_path) == dict.fromkeys(steps, "schedule")


def test_a_step_that_somebody_asked_for_stays(tmp_path: Path) -> None:
    interrupted(tmp_path, 6)
    add_saved_for(tmp_path, 6, "asked")
    resumed(tmp_path)
    assert reasons(tmp_path) == {0: "schedule", 4: "schedule", 6: "asked", 8: "schedule"}
    assert Trajectory.open(tmp_path).steps == (0, 4, 6, 8)


def test_the_step_after_which_a_training_failed_is_that_of_an_interruption(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        make_trainer(tmp_path, [callback("0,4,8", resume_every="2 steps"), FailAt(7, "on_step_begin")]).train()
    assert reasons(tmp_path) == {0: "schedule", 4: "schedule", 7: "interruption"}
    resumed(tmp_path)
    assert saved_steps(tmp_path) == [0, 4, 8]


def test_a_directory_with_nothing_else_says_how_the_step_is_read(tmp_path: Path) -> None:
    interrupted(tmp_path, 2, "4,8")
    with pytest.raises(CheckpointError, match=r"checkpoint-2: was saved at an interruption; .*interrupted=True"):
        Trajectory.open(tmp_path)


def test_a_damaged_one_is_not_computed_again_and_goes_away(tmp_path: Path) -> None:
    interrupted(tmp_path, 6)
    (tmp_path / "checkpoint-6" / MANIFEST).write_text("torn")
    resumed(tmp_path)
    assert saved_steps(tmp_path) == [0, 4, 8]


def test_one_that_a_kill_left_behind_goes_when_the_next_training_begins(tmp_path: Path) -> None:
    interrupted(tmp_path, 2)
    left = bytes_of(tmp_path / "checkpoint-2")
    interrupted(tmp_path, 6, resume=True)
    for name, content in left.items():
        (tmp_path / "checkpoint-2").mkdir(exist_ok=True)
        (tmp_path / "checkpoint-2" / name).write_bytes(content)
    assert reasons(tmp_path)[2] == "interruption"
    resumed(tmp_path)
    assert saved_steps(tmp_path) == [0, 4, 8]


def test_a_save_that_a_callback_asks_the_trainer_for_stays(tmp_path: Path) -> None:
    class Asks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save = state.global_step == 3

    make_trainer(tmp_path, [callback("0,4,8"), Asks()]).train()
    assert reasons(tmp_path) == {0: "schedule", 3: "asked", 4: "schedule", 8: "schedule"}
