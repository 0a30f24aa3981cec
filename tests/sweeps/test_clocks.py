"""Clocks that differ between machines decide nothing: locks and records do."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from emtoolkit.artifacts import run_log
from emtoolkit.sweeps.attempts import Attempt, Attempts
from emtoolkit.sweeps.plan import plan_sweep
from tests.in_process import emtoolkit

DAY = 86_400.0


@pytest.fixture(params=[-2, 2], ids=["late", "early"])
def shift(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """The clock of this process is wrong by two days, and `shift(path)` dates a file as another such machine does."""
    seconds, real = request.param * DAY, time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)
    return lambda path: os.utime(path, (real() - seconds, real() - seconds))


@pytest.mark.subprocess
def test_a_run_of_another_machine_is_left_to_it_and_a_finished_one_is_not_run_again(
    shift: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prog.sh").write_text('echo "$1" >> ran.txt\n')
    content = {"method": "grid", "command": ["/bin/sh", "prog.sh", "${args}"], "parameters": {"a": {"values": [1, 2]}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    plan = plan_sweep(Path("sweep.yaml"))
    first, second = plan.runs
    claim = Attempts(plan.directory).claim(first.key)
    assert claim is not None
    claim.update(Attempt(first.parameters, "running", number=1))
    for path in (plan.directory / "attempts").iterdir():
        shift(path)

    words = ("sweep", "sweep.yaml", "--only", f"{first.key},{second.key}", "--json")
    done = emtoolkit(*words)
    assert (done.code, Path("ran.txt").read_text()) == (0, "--a=2\n")
    assert "another process runs what is left" in done.err

    claim.release()
    again = emtoolkit(*words)
    assert (again.code, Path("ran.txt").read_text()) == (0, "--a=2\n--a=1\n")
    assert [run["state"] for run in json.loads(again.out)] == ["finished", "finished"]
    assert json.loads((plan.directory / "attempts" / f"{first.key}.json").read_text())["number"] == 2


def test_a_run_whose_writer_is_not_known_is_live_by_the_clock_of_the_file_system(
    shift: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "_is_written_by_a_process", lambda log: None)
    log = tmp_path / "run-a.wandb"
    log.touch()
    assert run_log.is_live(log)
    shift(log)
    assert not run_log.is_live(log)
