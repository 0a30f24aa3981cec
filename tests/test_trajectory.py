"""A row of checkpoints, by step: ours and a stock Trainer's."""

from pathlib import Path

import pytest
import torch

from emtoolkit import Trajectory
from emtoolkit.errors import CheckpointError
from tests.checkpoints.test_callback import StopAt, callback
from tests.checkpoints.trainings import base_model, make_trainer


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 0, 1, 3 and 8 of 8."""
    directory = tmp_path_factory.mktemp("ours")
    make_trainer(directory, [callback("0,1,3")]).train()
    return directory


def test_checkpoints_come_in_the_order_of_their_steps(ours: Path) -> None:
    trajectory = Trajectory.open(ours)
    assert trajectory.steps == (0, 1, 3, 8)
    assert [checkpoint.step for checkpoint in trajectory] == [0, 1, 3, 8]
    assert len(trajectory) == 4
    assert trajectory[0].step == 0
    assert trajectory.final.step == 8
    assert trajectory.at(3).path == ours / "checkpoint-3"
    assert trajectory.at(3).manifest is not None
    assert [checkpoint.step for checkpoint in trajectory.between(1, 3)] == [1, 3]
    assert trajectory.between(4, 7) == ()
    # Of two at the same distance the earlier.
    assert [trajectory.nearest(step).step for step in (-5, 2, 5, 6, 99)] == [0, 1, 3, 8, 8]


def test_a_step_that_is_not_there_is_told_with_the_nearest(ours: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at step 7; the nearest is 8$"):
        Trajectory.open(ours).at(7)


def test_adapters_are_loaded_by_step(ours: Path) -> None:
    tokens = torch.tensor([[1, 2, 3]])
    trajectory = Trajectory.open(ours)
    with torch.no_grad():
        base = base_model()(tokens).logits
        first, last = (trajectory.at(step).load_adapter(base_model())(tokens).logits for step in (0, 8))
    assert torch.equal(first, base)
    assert not torch.equal(last, base)


def test_a_file_that_is_not_what_the_manifest_says_is_named(tmp_path: Path) -> None:
    make_trainer(tmp_path, [callback("2")]).train()
    weights = tmp_path / "checkpoint-2" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    checkpoint = Trajectory.open(tmp_path).at(2)
    with pytest.raises(CheckpointError, match=r"checkpoint-2/adapter_model\.safetensors: its content does not match"):
        checkpoint.load_adapter(base_model())


def test_a_stock_trainers_checkpoints_are_a_trajectory_too(tmp_path: Path) -> None:
    make_trainer(tmp_path, save_strategy="steps", save_steps=3).train()
    trajectory = Trajectory.open(tmp_path)
    assert trajectory.steps == (3, 6, 8)
    assert trajectory.final.step == 8
    assert trajectory.at(3).manifest is None
    assert trajectory.at(6).load_adapter(base_model()) is not None


def test_a_training_that_has_not_ended_has_no_final_step(tmp_path: Path) -> None:
    make_trainer(tmp_path, [StopAt(4)], save_strategy="steps", save_steps=3).train()
    with pytest.raises(CheckpointError, match="training has not ended; the newest step is 3"):
        _ = Trajectory.open(tmp_path).final


def test_all_weights_are_not_loaded_as_an_adapter(tmp_path: Path) -> None:
    make_trainer(tmp_path, [callback("2")], model=base_model()).train()
    with pytest.raises(CheckpointError, match=r"checkpoint-2: it holds all weights and no adapter"):
        Trajectory.open(tmp_path).at(2).load_adapter(base_model())


def test_a_directory_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it holds no checkpoint$"):
        Trajectory.open(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such directory"):
        Trajectory.open(tmp_path / "nowhere")
