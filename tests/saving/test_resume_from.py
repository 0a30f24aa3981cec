"""`trainer.train(resume_from_checkpoint=…)` finds the resume state, which is not where the stock Trainer looks."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import TrainerState

from emtoolkit.errors import CheckpointError
from tests.saving.callbacks import FailAt, callback
from tests.saving.trainings import bytes_of, make_trainer, saved_steps


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that an exception ended at step 4; its resume state is of step 3."""
    directory = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(RuntimeError):
        make_trainer(directory, [callback("0,3", resume_every="3 steps"), FailAt(4, "on_step_begin")]).train()
    return directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    make_trainer(directory, [callback("every:1")]).train()
    return directory


@pytest.mark.parametrize("asked", [True, ".", "resume", "checkpoint-3", "resume/checkpoint-3"])
def test_the_newest_resume_state_is_found(stopped: Path, whole: Path, tmp_path: Path, asked: str | bool) -> None:
    directory = tmp_path / "run"
    shutil.copytree(stopped, directory)
    place = str(directory / asked) if isinstance(asked, str) else asked
    trainer = make_trainer(directory, [callback("0,3,8")])
    assert trainer.train(resume_from_checkpoint=place).global_step == 8
    # Step 4 was saved because of the exception.
    assert saved_steps(directory) == [0, 3, 8]
    assert bytes_of(directory / "checkpoint-8") == bytes_of(whole / "checkpoint-8")


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("checkpoint-0", r"checkpoint-0: holds the weights of step 0 and no optimizer, .* is .*/resume/checkpoint-3, "),
        ("checkpoint-99", r"checkpoint-99: no such directory; the resume state is .*/run/resume/checkpoint-3, which"),
    ],
)
def test_a_place_without_a_resume_state_is_refused_with_the_place_of_one(
    stopped: Path, asked: str, sentence: str
) -> None:
    before = bytes_of(stopped)
    with pytest.raises(CheckpointError, match=sentence):
        make_trainer(stopped, [callback("0,3")]).train(str(stopped / asked))
    assert bytes_of(stopped) == before


def test_without_a_resume_state_the_sentence_says_what_to_do(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="training ended at step 8, and only resume_at_end=True keeps"):
        make_trainer(whole, [callback("every:1")]).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="holds no resume state; without resume_from_checkpoint training starts"):
        make_trainer(tmp_path, [callback("0")]).train(True)


def test_a_finished_directory_holds_the_state_of_the_trainer_at_its_top(whole: Path) -> None:
    state = TrainerState.load_from_json(str(whole / "trainer_state.json"))
    assert (state.global_step, state.max_steps) == (8, 8)
    assert state.log_history[-1]["step"] == 8
    assert "train_loss" in json.loads((whole / "trainer_state.json").read_text())["log_history"][-1]
