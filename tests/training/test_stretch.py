"""One stretch of a trajectory, trained again, has the bytes of the uninterrupted training."""

from pathlib import Path

import pytest

from emtoolkit.errors import CheckpointError
from emtoolkit.training.prepare import prepare
from emtoolkit.training.resolved_config import read_resolved_config
from emtoolkit.training.stretch import train_stretch
from tests.saving.trainings import bytes_of, saved_steps


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
