"""`emtoolkit sweep --on slurm`: arrays, requeues, preemption, time limits and cancellation, on a real Slurm."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.in_process import Done, emtoolkit
from tests.processes import HANG_SECONDS
from tests.saving.trainings import bytes_of
from tests.slurm.cluster import Cluster, why_no_cluster

pytestmark = [
    pytest.mark.subprocess,
    pytest.mark.server,
    pytest.mark.skipif(why_no_cluster() is not None, reason=str(why_no_cluster())),
]

# Counts the programs that run at the same time in `most`, and fails for a=2 unless "mended" exists.
PROGRAM = """\
import fcntl, os, sys, time
def change(by):
    with open("count", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        now, most = map(int, file.read().split() or (0, 0))
        file.truncate(0)
        file.write(f"{now + by} {max(most, now + by)}")
change(1)
with open("ran.txt", "a") as file:
    print(*sys.argv[1:], file=file)
time.sleep(1)
change(-1)
if "--a=2" in sys.argv and not os.path.exists("mended"):
    raise ValueError("2 does not work")
"""


@pytest.fixture
def directory(slurm: Cluster, tmp_path: Path) -> Path:
    (tmp_path / "prog.py").write_text(PROGRAM)
    return tmp_path


def write(directory: Path, values: list[Any], **more: Any) -> Path:
    content = {"method": "grid", "program": "prog.py", "parameters": {"a": {"values": values}}}
    (directory / "sweep.yaml").write_text(yaml.safe_dump(content | more))
    return Path("sweep.yaml")


def on_slurm(directory: Path, *words: str) -> Done:
    return emtoolkit("sweep", "sweep.yaml", "--on", "slurm", *words, cwd=directory)


def states(directory: Path) -> list[tuple[Any, str, int]]:
    done = on_slurm(directory, "--status", "--json")
    assert done.code == 0, done.err
    return [(run["parameters"].get("a"), run["state"], run["starts"]) for run in json.loads(done.out)]


def ran(directory: Path) -> list[str]:
    path = directory / "ran.txt"
    lines = sorted(path.read_text().splitlines()) if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_an_array_runs_each_combination_once_with_at_most_so_many_at_a_time(slurm: Cluster, directory: Path) -> None:
    write(directory, [1, 2, 3, 4])
    first = on_slurm(directory, "--parallel", "1", "--slurm", "time=5")
    assert first.code == 0, first.err
    assert "with 4 runs; script and logs are in outputs/sweeps/sweep-local/slurm." in first.out
    again = on_slurm(directory)
    assert again.out == "No run was submitted: 4 are in the queue already.\n"
    slurm.wait_until_empty()

    assert ran(directory) == ["--a=1", "--a=2", "--a=3", "--a=4"]
    assert (directory / "count").read_text() == "0 1"
    assert states(directory) == [(1, "finished", 1), (2, "failed", 1), (3, "finished", 1), (4, "finished", 1)]
    table = " ".join(on_slurm(directory, "--status").out.split())
    assert "exit code 1: ValueError: 2 does not work (see outputs/sweeps/sweep-local/logs/2-" in table
    assert table.endswith("3 finished, 1 failed.")

    assert on_slurm(directory).out == "No run was submitted: 4 have finished or failed.\n"
    (directory / "mended").touch()
    retried = on_slurm(directory, "--retry-failed")
    assert "with 1 runs (3 have finished or failed)" in retried.out
    slurm.wait_until_empty()
    assert ran(directory) == ["--a=2"]
    assert states(directory)[1] == (2, "finished", 2)


def test_an_array_shares_a_sweep_with_a_sweep_on_this_machine(slurm: Cluster, directory: Path) -> None:
    write(directory, [1, 3, 4, 5, 6, 7])
    assert on_slurm(directory, "--parallel", "1").code == 0
    local = emtoolkit("sweep", "sweep.yaml", "--json", cwd=directory)
    assert local.code == 0
    slurm.wait_until_empty()
    assert ran(directory) == ["--a=1", "--a=3", "--a=4", "--a=5", "--a=6", "--a=7"]
    assert {state for _, state, _ in states(directory)} == {"finished"}


@pytest.fixture
def training(directory: Path, write_config: Callable[..., Path], preloaded_python: None) -> Callable[[str], None]:
    """Write a sweep of one training, of 9 steps, which waits for a signal before some steps."""

    def write_training(holds: str) -> None:
        write_config("schedule: '0-9:2'")
        command = ["${interpreter}", "-m", "tests.slurm.held_training", holds, "train", "run.yaml", "--resume"]
        write(directory, [], command=[*command, "${args}"], parameters={"output_dir": {"value": "out"}})

    return write_training


def wait_for(path: Path) -> None:
    end = time.monotonic() + HANG_SECONDS
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.05)


def log_of(directory: Path) -> str:
    return "".join(log.read_text() for log in (directory / "outputs/sweeps/sweep-local/logs").glob("*.log"))


def of_whole_training(directory: Path) -> dict[str, bytes]:
    """The checkpoints of the same training without an interruption, run here."""
    done = emtoolkit("train", "run.yaml", "--output-dir", "whole", cwd=directory)
    assert done.code == 0, done.err
    return checkpoints(directory / "whole")


def checkpoints(directory: Path) -> dict[str, bytes]:
    return {name: content for name, content in bytes_of(directory).items() if name.startswith("checkpoint-")}


def test_a_preempted_run_saves_and_continues_with_the_same_bytes(
    slurm: Cluster, directory: Path, training: Callable[[str], None]
) -> None:
    training("5")
    assert on_slurm(directory).code == 0
    wait_for(directory / "held-5")
    slurm.run("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=true")
    slurm.wait_until_empty()

    assert states(directory) == [(None, "finished", 2)]
    assert "interrupted by SIGTERM after step 6" in log_of(directory)
    assert checkpoints(directory / "out") == of_whole_training(directory)


def test_a_run_near_its_time_limit_is_requeued_until_it_has_finished(
    slurm: Cluster, directory: Path, training: Callable[[str], None]
) -> None:
    training("2,5")
    assert on_slurm(directory, "--slurm", "time=5 signal=USR1@120").code == 0
    for step in (2, 5):
        wait_for(directory / f"held-{step}")
        # As Slurm sends it two minutes before the limit.
        (task,) = (line.split()[0] for line in slurm.queued().splitlines())
        slurm.run("scancel", "--signal=USR1", task)
        slurm.start_requeued()
    slurm.wait_until_empty()

    assert states(directory) == [(None, "finished", 3)]
    log = log_of(directory)
    assert log.index("after step 3") < log.index("after step 6")
    assert checkpoints(directory / "out") == of_whole_training(directory)


def test_a_cancelled_run_saves_and_stays_cancelled_until_it_is_submitted_again(
    slurm: Cluster, directory: Path, training: Callable[[str], None]
) -> None:
    training("5")
    assert on_slurm(directory).code == 0
    wait_for(directory / "held-5")
    assert states(directory) == [(None, "running", 1)]
    cancelled = on_slurm(directory, "--cancel")
    assert cancelled.out.startswith("Cancelled 0 waiting and 1 running tasks; those that run save their state")
    slurm.wait_until_empty()
    assert states(directory) == [(None, "interrupted", 1)]
    assert on_slurm(directory, "--cancel").out == "No task of this sweep is in Slurm's queue.\n"

    assert on_slurm(directory).code == 0
    slurm.wait_until_empty()
    assert states(directory) == [(None, "finished", 2)]


@pytest.mark.parametrize(
    ("words", "values", "sentence"),
    [
        (("--slurm", "partition=gpus"), [1], "sbatch: invalid partition specified: gpus"),
        (("--slurm", "no-such-option=1"), [1], "sbatch: unrecognized option '--no-such-option=1'"),
        ((), list(range(21)), "21 tasks are more than this cluster's MaxArraySize of 20; take fewer with --count"),
    ],
)
def test_what_slurm_refuses_is_one_sentence_and_submits_nothing(
    slurm: Cluster, directory: Path, words: tuple[str, ...], values: list[int], sentence: str
) -> None:
    write(directory, values)
    done = on_slurm(directory, *words)
    assert done.code == 2
    assert sentence in " ".join(done.err.split())
    assert slurm.queued() == ""


def test_without_slurm_the_script_can_be_printed_and_not_submitted(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = directory / "empty"
    empty.mkdir()
    bash = shutil.which("bash")
    assert bash is not None
    write(directory, [1, 2], slurm={"partition": "gpu", "gres": "gpu:1"})
    monkeypatch.setenv("PATH", str(empty))
    refused = on_slurm(directory)
    assert refused.code == 2
    assert "the command is not here; run this on a login node of the cluster" in " ".join(refused.err.split())
    printed = on_slurm(directory, "--print", "--slurm", "time=1:00:00")
    assert printed.code == 0
    checked = subprocess.run([bash, "-n"], input=printed.out, text=True, check=False)
    assert checked.returncode == 0
    assert printed.out.splitlines()[1:10] == [
        "#SBATCH --job-name=emtoolkit-sweep",
        "#SBATCH --array=0-1",
        f"#SBATCH --output={directory}/outputs/sweeps/sweep-local/slurm/%A_%a.log",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --signal=TERM@120",
        "#SBATCH --gres=gpu:1",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=1:00:00",
    ]
    assert f"cd {directory} || exit 2" in printed.out
    assert f"srun --ntasks=1 --unbuffered {sys.executable} -m emtoolkit sweep sweep.yaml --only" in printed.out
