"""One cluster for all tests on Slurm."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, cluster


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
