"""Agents of W&B, as a user starts them."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import preloaded
from tests.wandb_server import WandbServer
from tests.wandb_server.processes import wandb_command


@pytest.fixture
def environment(wandb_server: WandbServer, tmp_path: Path) -> dict[str, str]:
    """The environment of a shell in a checkout whose `.venv` is not activated; the user types `.venv/bin/wandb`."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(preloaded.interpreter())
    ours = os.environ | wandb_server.environment() | {"PATH": "/usr/bin:/bin"}
    # Under an agent runs are online by default.
    del ours["WANDB_MODE"]
    return ours


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []

    def start(*words: str, cwd: Path = tmp_path, **variables: str) -> "subprocess.Popen[str]":
        started.append(
            subprocess.Popen(
                wandb_command(*words),
                cwd=cwd,
                env=environment | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
