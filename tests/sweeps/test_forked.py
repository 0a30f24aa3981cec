"""A run that a sweep forks from a process with the libraries imported is what a program of its own is."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import emtoolkit
from emtoolkit.sweeps import forked
from emtoolkit.sweeps.processes import Processes

pytestmark = [pytest.mark.subprocess, pytest.mark.usefixtures("preloaded_python")]


def ended(processes: Processes) -> tuple[str, int]:
    found = processes.next_ended(timeout=None)
    assert found is not None
    return found


def start(processes: Processes, words: list[str], log: Path, *before: str) -> None:
    processes.start(log.name, [*before, sys.executable, "-m", "emtoolkit", *words], os.environ, log, (), fork=True)


def test_forked_runs_have_their_exit_codes_logs_and_variables_and_one_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    popen = subprocess.Popen

    def counted(argv: Any, **options: Any) -> Any:
        started.append(argv[1:])
        return popen(argv, **options)

    monkeypatch.setattr(subprocess, "Popen", counted)
    with Processes() as processes:
        start(processes, ["--version"], tmp_path / "good", "/usr/bin/env", "PATH=/nowhere")
        assert ended(processes) == ("good", 0)
        start(processes, ["schedule", "evry:100", "--total-steps", "9"], tmp_path / "bad")
        assert ended(processes) == ("bad", 2)
    assert (tmp_path / "good").read_text() == f"emtoolkit {emtoolkit.__version__}\n"
    assert (tmp_path / "bad").read_text().startswith("emtoolkit: ")
    assert started == [["-m", "emtoolkit.cli.fork_server"]]


@pytest.mark.parametrize(
    "command",
    [["python", "-m", "emtoolkit"], ["/usr/bin/env", "OMP_NUM_THREADS=3", sys.executable, "-m", "emtoolkit"]],
)
def test_another_command_is_not_forked(command: list[str]) -> None:
    assert forked.ForkServer(lambda: None).start(command, os.environ, 1, ()) is None


def test_a_run_starts_as_a_program_of_its_own_where_the_server_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "_SERVER", "emtoolkit.no_such_module")
    with Processes() as processes:
        start(processes, ["--version"], tmp_path / "log")
        assert ended(processes) == ("log", 0)
    assert (tmp_path / "log").read_text() == f"emtoolkit {emtoolkit.__version__}\n"


@pytest.mark.parametrize("killed", ["sweep", "server"])
def test_a_forked_run_ends_with_the_sweep_and_with_its_server(
    killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "_SERVER", "tests.sweeps.waiting_server")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with Processes() as processes:
        start(processes, [str(pipe)], tmp_path / "log")
        run, server = map(int, pipe.read_text().split())
        assert os.getpgid(run) == run
        if killed == "sweep":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            os.kill(server, signal.SIGKILL)
        assert ended(processes) == ("log", -signal.SIGTERM)
