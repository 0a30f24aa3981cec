"""Runs of one trajectory share its checkpoints: what is trained, what is taken, and that the bytes are the same."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.config.load import load_config
from emtoolkit.config.sections import RunConfig
from emtoolkit.training.reusing import take_without_training
from emtoolkit.training.run import train
from tests.tiny import config_text

Config = Callable[..., RunConfig]


@pytest.fixture
def config(world: Path, tmp_path: Path) -> Config:
    """The tiny run into `tmp_path/<name>`, with the store `tmp_path/store`."""

    def config(name: str, schedule: str, *settings: str, reuse: bool = True) -> RunConfig:
        file = tmp_path / f"{name}.yaml"
        file.write_text(config_text(world, f"schedule: '{schedule}'"))
        words = ["wandb.mode=disabled", f"trajectory.store={tmp_path / 'store'}", *settings]
        return load_config(str(file), words, {"output_dir": str(tmp_path / name), "trajectory.reuse": reuse})

    return config


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file of every checkpoint in `directory`."""
    files = sorted(file for file in directory.glob("checkpoint-*/**/*") if file.is_file())
    return {str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def steps(directory: Path) -> list[int]:
    return [info.step for info in list_checkpoints(directory, rehash=True) if info.complete]


@pytest.fixture(scope="module")
def separate(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without reuse that saves every step."""
    home = tmp_path_factory.mktemp("separate")
    (home / "run.yaml").write_text(config_text(world, "schedule: '0,every:1'"))
    train(load_config(str(home / "run.yaml"), ["wandb.mode=disabled"], {"output_dir": str(home / "run")}))
    return home / "run"


def of_steps(directory: Path, *wanted: int) -> dict[str, str]:
    return {name: digest for name, digest in digests(directory).items() if int(name.split("/")[0][11:]) in wanted}


def test_a_second_schedule_is_taken_without_a_training(config: Config, tmp_path: Path, separate: Path) -> None:
    first = train(config("first", "0,2", "trajectory.also_save=3-7:2"))
    assert (first.trained, steps(tmp_path / "first"), first.reused) == (True, [0, 2, 9], ())
    second = take_without_training(config("second", "3,7"), resume=False)
    assert second is not None
    assert (second.trained, second.reused, steps(tmp_path / "second")) == (False, (3, 7, 9), [3, 7, 9])
    assert digests(tmp_path / "first") == of_steps(separate, 0, 2, 9)
    assert digests(tmp_path / "second") == of_steps(separate, 3, 7, 9)


def test_a_missing_stretch_is_trained_to_its_last_step(config: Config, tmp_path: Path, separate: Path) -> None:
    train(config("first", "0,6"))
    assert take_without_training(config("second", "2,4,6"), resume=False) is None
    result = train(config("second", "2,4,6"))
    assert (result.trained, result.reused, steps(tmp_path / "second")) == (True, (6, 9), [2, 4, 6, 9])
    assert digests(tmp_path / "second") == of_steps(separate, 2, 4, 6, 9)
    assert [info.step for info in list_checkpoints(tmp_path / "second") if info.final] == [9]
