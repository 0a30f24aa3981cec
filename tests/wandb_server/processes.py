"""The real client in a separate process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.processes import HANG_SECONDS

# W&B's command line, with agents that ask for work twice a second instead of every five seconds.
WANDB = (
    sys.executable,
    "-c",
    """
import sys
from wandb import wandb_agent
from wandb.agents import pyagent
from wandb.cli.cli import cli

wandb_agent.Agent.POLL_INTERVAL = pyagent.Agent.HEARTBEAT_SLEEP_SECONDS = 0.5
sys.argv[0] = "wandb"
cli()
""",
)


def run_script(script: str, directory: Path, *arguments: str) -> Any:
    """Run Python code in `directory`; return the JSON value on its last line of output."""
    finished = _finish([sys.executable, "-c", script, *arguments], directory)
    return json.loads(finished.stdout.strip().splitlines()[-1])


def run_wandb(directory: Path, *arguments: str) -> str:
    """Run a `wandb` command; return its output and error output."""
    finished = _finish([*WANDB, *arguments], directory)
    return finished.stdout + finished.stderr


def _finish(command: list[str], directory: Path) -> "subprocess.CompletedProcess[str]":
    directory.mkdir(parents=True, exist_ok=True)
    finished = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    if finished.returncode:
        raise AssertionError(f"{' '.join(command)[:200]} ended with {finished.returncode}:\n{finished.stderr[-4000:]}")
    return finished
