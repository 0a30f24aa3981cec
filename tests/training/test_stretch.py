"""One stretch of a trajectory, trained again, has the bytes of the uninterrupted training."""

from pathlib import Path

import pytest

from emtoolkit.config.load import load_config
from emtoolkit.errors import CheckpointError, ConfigError
from emtoolkit.schedules.resume_keep import kept_states
from emtoolkit.training.cost import plan_one
from emtoolkit.training.prepare import prepare
from emtoolkit.training.resolved_config import read_resolved_config
from emtoolkit.training.run import train
from emtoolkit.training.stretch import train_stretch
from tests.saving.trainings import bytes_of, saved_steps
from tests.tiny import config_text


@pytest.fixture(scope="module")
def kept(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of two epochs of 9 steps with dropout, and the resume states of steps 3 and 12."""
    home = tmp_path_factory.mktemp("kept")
    (home / "run.yaml").write_text(config_text(world, "schedule: every:2\n  resume_keep: '3,12,18'"))
    words = ["wandb.mode=disabled", "training.epochs=2", "lora.dropout=0.2"]
    train(load_config(str(home / "run.yaml"), words, {"output_dir": str(home / "out")}))
    return home / "out"


@pytest.mark.parametrize("name", ["prompt", "stack", "full"])
def test_a_stretch_from_step_0_has_the_bytes_of_the_whole_training(runs: Path, tmp_path: Path, name: str) -> None:
    config = read_resolved_config(runs / name)
    found = train_stretch(config, prepare(config), [0, 3, 4], tmp_path / "again")
    assert (found.from_step, found.to_step, found.trained_steps) == (0, 4, 4)
    assert [saved.step for saved in found.saved] == saved_steps(tmp_path / "again") == [0, 3, 4]
    for step in (0, 4):
        assert bytes_of(tmp_path / "again" / f"checkpoint-{step}") == bytes_of(runs / name / f"checkpoint-{step}")


def test_a_step_that_cannot_be_reached_is_refused(runs: Path, tmp_path: Path) -> None:
    config = read_resolved_config(runs / "prompt")
    with pytest.raises(CheckpointError, match="steps 0 to 9 can be trained from step 0"):
        train_stretch(config, prepare(config), [10], tmp_path / "again")


def test_the_resume_states_of_resume_keep_stay(kept: Path) -> None:
    assert saved_steps(kept / "resume") == [3, 12]


@pytest.mark.parametrize("start", [3, 12])
def test_a_stretch_from_a_kept_state_has_the_bytes_of_the_whole_training(
    kept: Path, tmp_path: Path, start: int
) -> None:
    config = read_resolved_config(kept)
    state = kept / "resume" / f"checkpoint-{start}"
    before = bytes_of(state)
    steps = [start + 1, start + 2, start + 3]
    found = train_stretch(config, prepare(config), steps, tmp_path / "again", start=state)
    assert (found.from_step, found.to_step) == (start, start + 3)
    existing = [step for step in steps if step % 2 == 0]
    for step in existing:
        assert bytes_of(tmp_path / "again" / f"checkpoint-{step}") == bytes_of(kept / f"checkpoint-{step}")
    assert saved_steps(tmp_path / "again") == steps
    assert bytes_of(state) == before


def test_a_resumed_run_keeps_the_states(kept: Path) -> None:
    train(read_resolved_config(kept), resume=True)
    assert saved_steps(kept / "resume") == [3, 12]


def test_the_plan_says_how_much_the_kept_states_take(world: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(config_text(world, "schedule: every:2\n  resume_keep: every:3"))
    plan = plan_one(load_config(str(tmp_path / "run.yaml"))).plan
    assert list(plan.kept_states) == [3, 6]
    assert plan.resume_bytes is not None
    assert plan.kept_bytes == 2 * plan.resume_bytes


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("evry:100", r"checkpointing.resume_keep: .*evry.*\(expected newest, or a schedule such as every:100\)"),
        ("every:0", r"checkpointing.resume_keep: .*every:0"),
        ("never", r"checkpointing.resume_keep: .*never"),
        ("5,50", r"checkpointing.resume_keep: schedule \"5,50\": step 50 is past the end of training at step 9"),
    ],
)
def test_a_bad_value_of_resume_keep_is_one_sentence(world: Path, tmp_path: Path, value: str, problem: str) -> None:
    (tmp_path / "run.yaml").write_text(config_text(world, f"schedule: every:2\n  resume_keep: '{value}'"))
    with pytest.raises(ConfigError, match=problem):
        plan_one(load_config(str(tmp_path / "run.yaml")))


def test_neither_step_0_nor_the_last_step_is_kept() -> None:
    assert list(kept_states("every:3", 9)) == [3, 6]
    assert list(kept_states("newest", 9)) == []
