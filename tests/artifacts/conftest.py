"""One loopback server for a module: a client that finds its service running is ready in a fifth of the time."""

from collections.abc import Iterator

import pytest

from tests.marks import OPENS_PORTS
from tests.wandb_server import WandbServer
from tests.wandb_server.client import end_client


@pytest.fixture(scope="module", params=OPENS_PORTS)
def _running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WandbServer]:
    import wandb

    # The client reads its settings once: those of an earlier test would name another server.
    end_client(within=5)
    with WandbServer.start(tmp_path_factory.mktemp("wandb-server")) as server:
        yield server
        server.faults.clear()
        wandb.teardown()


@pytest.fixture
def server(_running: WandbServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """The server, empty and well-behaved, which this process and those that it starts use."""
    for name, value in _running.environment().items():
        monkeypatch.setenv(name, value)
    _running.store.projects.clear()
    _running.clear_requests()
    yield _running
    _running.faults.clear()
