"""One cluster for all tests on Slurm."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster, cluster
from tests.slurm.sweeps import PROGRAM, write


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture
def slurm(running_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, to which the commands of Slurm talk in this process."""
    for name, value in running_cluster.environment.items():
        monkeypatch.setenv(name, value)
    return running_cluster


@pytest.fixture
def directory(slurm: Cluster, tmp_path: Path) -> Path:
    (tmp_path / "prog.py").write_text(PROGRAM)
    return tmp_path


@pytest.fixture
def training(directory: Path, write_config: Callable[..., Path], preloaded_python: None) -> Callable[..., None]:
    """Write a sweep of one training, of 9 steps, which waits for a signal before some steps."""

    def write_training(holds: str, wandb: str = "", **more: Any) -> None:
        write_config("schedule: '0-9:2'", wandb)
        command = ["${interpreter}", "-m", "tests.slurm.held_training", holds, "train", "run.yaml", "--resume"]
        write(directory, [], command=[*command, "${args}"], parameters={"output_dir": {"value": "out"}}, **more)

    return write_training
