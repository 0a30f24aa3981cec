"""What every test stands on: no network, one thread per process, nothing written outside `tmp_path`."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.marks import OPENS_PORTS

pytest_plugins = ["tests.guard"]

if TYPE_CHECKING:
    from tests.wandb_server import WandbServer

# Before anything imports torch, wandb or a hub client, which read these once.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_MODE": "offline",
}
for name in ("WANDB_API_KEY", "WANDB_DIR", "WANDB_PROJECT", "EMTOOLKIT_HOME"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _own_wandb_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B's three directories, which it would otherwise make in the user's home and working directory."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-own" / name.lower()))
    yield
    if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
        wandb.finish()


@pytest.fixture(params=OPENS_PORTS)
def wandb_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[WandbServer]":
    """A W&B server on loopback, which this process and those that it starts then use."""
    from tests.wandb_server import WandbServer

    if "wandb" in sys.modules:
        # Settings are read once: those of an earlier test would point elsewhere.
        _end_wandb_client(within=5)
    with WandbServer.start(tmp_path / "wandb-server") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
        # What the client still has to send it must get rid of, or its end takes as long as the server hangs.
        server.faults.clear()
        server.accept_connections()
        if "wandb" in sys.modules:
            _end_wandb_client(within=5)


def _end_wandb_client(within: float) -> None:
    """The client's end has no bound of its own: it may be a minute away from its next attempt."""
    import psutil  # type: ignore[import-untyped]
    import wandb
    from wandb.sdk.lib.module import unset_globals

    killed = threading.Event()

    def kill_service() -> None:
        killed.set()
        for child in psutil.Process().children():
            if child.name() == "wandb-core":
                child.kill()

    timer = threading.Timer(within, kill_service)
    timer.start()
    for end in (wandb.finish, wandb.teardown):
        try:
            end()
        except Exception:
            if not killed.is_set():
                raise
    timer.cancel()
    unset_globals()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, its personas and its data; to be read, not changed."""
    from tests.tiny import write_world

    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def write_config(world: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a config for the tiny world: `write_config(checkpointing="save_steps: 3", rest="seed: 1")`."""
    from tests.tiny import config_text

    def write(checkpointing: str = "schedule: '0-4:2'", rest: str = "") -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(config_text(world, checkpointing, rest))
        return path

    return write
