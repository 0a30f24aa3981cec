"""Many checkpoints of one directory go to W&B together, and become versions in the order of their steps."""

import threading
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.artifacts.destination import Destination, Prepared, Started
from emtoolkit.artifacts.sync import sync
from emtoolkit.checkpoints.publications import Published
from tests.artifacts.trainings import SHARED, saved
from tests.wandb_server import WandbServer

STEPS = [0, 2, 4, 6, 8, 10]
SECONDS = 10.0  # a test that fails waits so long


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return saved(tmp_path / "out", dict.fromkeys(STEPS, "a"))


def test_a_second_checkpoint_is_logged_before_the_first_one_is_on_wandb(
    directory: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[int] = []
    two_are_logged = threading.Event()
    log, finish = Destination._log_artifact, Destination.finish

    def counted(self: Destination, run: Any, prepared: Prepared) -> Started:
        started = log(self, run, prepared)
        logged.append(prepared.publication.step)
        if len(logged) == 2:
            two_are_logged.set()
        return started

    def held_back(self: Destination, started: Started) -> Published:
        assert two_are_logged.wait(SECONDS), f"{logged} was logged, and nothing more until it was on W&B"
        return finish(self, started)

    monkeypatch.setattr(Destination, "_log_artifact", counted)
    monkeypatch.setattr(Destination, "finish", held_back)
    assert sync(directory, project="proj").problems == ()
    assert logged == STEPS
    held = server.store.project("tester", "proj").collections[SHARED].versions
    assert [(version.index, version.metadata["step"]) for version in held] == [*enumerate(STEPS)]


def test_the_progress_moves_with_each_checkpoint(directory: Path, server: WandbServer) -> None:
    shown: list[tuple[str, int, int]] = []
    sync(directory, project="proj", progress=lambda *moved: shown.append(moved))
    assert shown == [
        ("checkpoint 0", 0, 6),
        ("checkpoint 0", 1, 6),
        ("checkpoint 2", 2, 6),
        ("checkpoint 4", 3, 6),
        ("checkpoint 6", 4, 6),
        ("checkpoint 8", 5, 6),
        ("checkpoint 10", 6, 6),
    ]
