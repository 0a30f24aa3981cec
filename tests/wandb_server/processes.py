"""The real client in a separate process."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests import preloaded
from tests.processes import HANG_SECONDS


def wandb_command(*words: str) -> list[str]:
    """Starts W&B's command line, with agents that ask for work twice a second instead of every five seconds."""
    return preloaded.command("tests.wandb_server.command_line", *words)


def run_script(script: str, directory: Path, *arguments: str) -> Any:
    """Run Python code in `directory`; return the JSON value on its last line of output."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "script.py").write_text(script)
    finished = _finish(preloaded.command("script", *arguments), directory)
    return json.loads(finished.stdout.strip().splitlines()[-1])


def run_wandb(directory: Path, *arguments: str) -> str:
    """Run a `wandb` command; return its output and error output."""
    directory.mkdir(parents=True, exist_ok=True)
    finished = _finish(wandb_command(*arguments), directory)
    return finished.stdout + finished.stderr


def _finish(command: list[str], directory: Path) -> "subprocess.CompletedProcess[str]":
    finished = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    if finished.returncode:
        raise AssertionError(f"{' '.join(command)[:200]} ended with {finished.returncode}:\n{finished.stderr[-4000:]}")
    return finished
