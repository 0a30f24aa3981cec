"""The real client in a process of its own, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.processes import HANG_SECONDS


def run_script(script: str, directory: Path, *arguments: str) -> Any:
    """Run Python code there; the JSON value that it prints last."""
    finished = _finish([sys.executable, "-c", script, *arguments], directory)
    return json.loads(finished.stdout.strip().splitlines()[-1])


def run_wandb(directory: Path, *arguments: str) -> str:
    """A `wandb` command line; everything that it printed."""
    finished = _finish([sys.executable, "-m", "wandb", *arguments], directory)
    return finished.stdout + finished.stderr


def _finish(command: list[str], directory: Path) -> "subprocess.CompletedProcess[str]":
    directory.mkdir(parents=True, exist_ok=True)
    finished = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    if finished.returncode:
        raise AssertionError(f"{' '.join(command)[:200]} ended with {finished.returncode}:\n{finished.stderr[-4000:]}")
    return finished
