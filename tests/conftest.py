"""Settings of every test: no network, one thread per process, no files outside `tmp_path`."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.marks import OPENS_PORTS, STARTS_PROCESSES

pytest_plugins = ["tests.guard"]

# While modules are imported, until `pytest_collection_finish`: each full collection visits all libraries, in 0.3 s.
gc.disable()

if TYPE_CHECKING:
    from tests.hub_server import HubServer
    from tests.wandb_server import WandbServer

# Before anything imports torch, wandb or a hub client, which read these once.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_MODE": "offline",
}
for name in ("WANDB_API_KEY", "WANDB_DIR", "WANDB_PROJECT"):
    os.environ.pop(name, None)
# A shell ignores SIGINT in what it starts in the background, and nohup ignores SIGHUP; what tests start would inherit
# this.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collectstart() -> None:
    """Import W&B's client before the first module of tests: only here does that take a second less."""
    from tests.preloaded import import_wandb

    import_wandb()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests on Slurm: one worker waits for Slurm for minutes while the others take its other tests."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/slurm/"))


def pytest_collection_finish() -> None:
    """Take what the libraries made out of the garbage collection: the Trainer collects at its end, in 0.3 s with it."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _frozen_objects() -> Iterator[None]:
    """Take what a module of tests leaves out of the garbage collection, too: libraries that it was first to use."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache_directory(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Put emtoolkit's cache, by default in the user's home, into a directory of this test process."""
    os.environ["EMTOOLKIT_HOME"] = str(tmp_path_factory.mktemp("emtoolkit"))


@pytest.fixture(autouse=True)
def _own_wandb_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put W&B's three directories, by default in the user's home, below `tmp_path`."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-own" / name.lower()))
    # `wandb.sweep` sets these; monkeypatch puts back what it has seen.
    for name in ("WANDB_ENTITY", "WANDB_PROJECT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
        wandb.finish()


@pytest.fixture(params=OPENS_PORTS)
def wandb_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[WandbServer]":
    """A W&B server on loopback that W&B's client uses in this process and in its child processes."""
    from tests.wandb_server import WandbServer
    from tests.wandb_server.client import end_client

    # The client reads its settings once: those of an earlier test would name another server.
    end_client(within=5)
    with WandbServer.start(tmp_path / "wandb-server") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
        # The client waits for the answers to its last requests.
        server.faults.clear()
        server.accept_connections()
        end_client(within=5)


@pytest.fixture(params=[pytest.param(None, marks=[pytest.mark.server], id=pytest.HIDDEN_PARAM)])
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[HubServer]":
    """A Hugging Face hub on loopback that the client uses in this process and in its child processes."""
    from tests.hub_server import HubServer
    from tests.hub_server.client import use

    with HubServer.start(tmp_path / "hub-server") as server:
        use(server, tmp_path / "hub-cache", monkeypatch)
        yield server
        server.faults.clear()


@pytest.fixture(params=STARTS_PROCESSES)
def preloaded_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process starts with `sys.executable -m` is preloaded, as the `wandb sync` of `emtoolkit sync`."""
    from tests import preloaded

    monkeypatch.setattr(sys, "executable", preloaded.interpreter())


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny model, its personas and its data; read-only."""
    from tests.tiny import write_world

    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def write_config(world: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a config for the tiny world: `write_config(checkpointing="save_steps: 3", rest="seed: 1")`."""
    from tests.tiny import config_text

    def write(checkpointing: str = "schedule: '0-4:2'", rest: str = "") -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(config_text(world, checkpointing, rest))
        return path

    return write


@pytest.fixture(scope="session")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories with one training each: `prompt`, `stack`, `merge`, `full`, and `other` with another schedule."""
    from emtoolkit.config.load import load_config
    from emtoolkit.training.run import train
    from tests.tiny import config_text

    home = tmp_path_factory.mktemp("runs")
    for name, schedule, settings in (
        ("prompt", "'0-4:2'", ["persona=curt"]),
        ("other", "'0,3'", ["persona=curt"]),
        ("stack", "'0-4:2'", ["persona=warm", "compose=stack"]),
        ("merge", "'0-4:2'", ["persona=warm"]),
        ("full", "'0,4'", ["persona=curt", "lora=null"]),
    ):
        (home / f"{name}.yaml").write_text(config_text(world, f"schedule: {schedule}"))
        words = [*settings, "wandb.mode=disabled"]
        train(load_config(str(home / f"{name}.yaml"), words, {"output_dir": str(home / name)}))
    return home
