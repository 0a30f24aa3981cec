"""A run of a sweep that is interrupted and continued is one W&B run, under an agent and without one."""

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import preloaded
from tests.launched import ROOT
from tests.processes import HANG_SECONDS
from tests.slurm.sweeps import wait_for
from tests.wandb_server import WandbServer

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def sweep(write_config: Callable[..., Path], tmp_path: Path) -> Path:
    """A sweep of one training of 9 steps with reuse, as the shipped ones; it waits once for a signal before step 6."""
    write_config("schedule: '0-9:4'", "wandb: {mode: online}")
    words = ["tests.slurm.held_training", "5", "train", "run.yaml", "--resume", "--reuse", "${args}"]
    content = {
        "method": "grid",
        "program": "emtoolkit",
        "project": "tests",
        "parameters": {"output_dir": {"value": "out"}},
        "command": ["${env}", f"PYTHONPATH={ROOT}", "PATH=.venv/bin:${envvar:PATH}", "${interpreter}", "-m", *words],
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def stop(training: Path) -> None:
    """Send a signal to the training alone, whose number is in the file."""
    wait_for(training)
    os.kill(int(training.read_text()), signal.SIGTERM)


def the_run(server: WandbServer) -> Any:
    (run,) = server.store.project("tester", "tests").runs.values()
    return run


def has_one_history(run: Any) -> bool:
    logged = [row["train/global_step"] for row in run.history if "train/loss" in row]
    return logged == [*range(1, 10)] and [row["_step"] for row in run.history] == [*range(len(run.history))]


def test_the_next_agent_continues_the_run_that_a_signal_stopped(
    start: Start, sweep: Path, wandb_server: WandbServer, tmp_path: Path
) -> None:
    said, _ = start("sweep", sweep.name).communicate(timeout=HANG_SECONDS)
    found = re.search(r"wandb agent (tester/tests/(\w+))", said)
    assert found, said
    first = start("agent", "--count", "1", found[1])
    stop(tmp_path / "held-5")
    said, _ = first.communicate(timeout=HANG_SECONDS)
    assert first.returncode == 0, said
    run = the_run(wandb_server)
    assert (run.state, run.preempting, run.exit_code, run.sweep.state) == ("preempted", True, 1, "RUNNING"), said

    second = start("agent", found[1])
    said, _ = second.communicate(timeout=HANG_SECONDS)
    assert second.returncode == 0, said
    assert the_run(wandb_server) is run
    assert (run.state, run.exit_code, run.sweep.state) == ("finished", 0, "FINISHED"), said
    assert [agent.runs for agent in run.sweep.agents.values()] == [[run.name]] * 2
    assert has_one_history(run)


def test_the_next_sweep_continues_the_run_that_a_signal_stopped(
    sweep: Path, environment: dict[str, str], wandb_server: WandbServer, tmp_path: Path
) -> None:
    def start() -> "subprocess.Popen[str]":
        command = preloaded.command("emtoolkit", "sweep", sweep.name)
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    with start() as first:
        wait_for(tmp_path / "held-5")
        first.terminate()
        said, _ = first.communicate(timeout=HANG_SECONDS)
    run = the_run(wandb_server)
    assert (first.returncode, run.state, run.preempting) == (143, "preempted", True), said
    with start() as second:
        said, _ = second.communicate(timeout=HANG_SECONDS)
    assert (second.returncode, run.state, run.exit_code) == (0, "finished", 0), said
    assert the_run(wandb_server) is run
    assert has_one_history(run)
