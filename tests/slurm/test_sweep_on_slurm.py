"""`emtoolkit sweep --on slurm`: arrays, requeues, preemption, time limits and cancellation, on a real Slurm."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.in_process import emtoolkit
from tests.processes import HANG_SECONDS
from tests.slurm.cluster import Cluster, why_no_cluster
from tests.slurm.sweeps import checkpoints, log_of, of_whole_training, on_slurm, states, wait_for, write
from tests.wandb_server import WandbServer

pytestmark = [
    pytest.mark.subprocess,
    pytest.mark.server,
    pytest.mark.skipif(why_no_cluster() is not None, reason=str(why_no_cluster())),
]


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


def test_a_preempted_run_saves_and_continues_with_the_same_bytes_as_one_run_on_wandb(
    slurm: Cluster, directory: Path, training: Callable[..., None], wandb_server: WandbServer
) -> None:
    training("5", "wandb: {mode: online, project: tests}")
    assert on_slurm(directory).code == 0
    wait_for(directory / "held-5")
    slurm.run("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=true")
    (run,) = wandb_server.store.project("tester", "tests").runs.values()
    wandb_server.wait_until(lambda: run.state == "preempted")
    slurm.wait_until_empty()
    (again,) = wandb_server.store.project("tester", "tests").runs.values()
    assert (again is run, run.state, run.exit_code) == (True, "finished", 0)
    assert [row["train/global_step"] for row in run.history if "train/loss" in row] == list(range(1, 10))

    assert states(directory) == [(None, "finished", 2)]
    assert "interrupted by SIGTERM after step 6" in log_of(directory)
    assert checkpoints(directory / "out") == of_whole_training(directory)


def test_a_preempted_run_on_a_scratch_disk_continues_from_what_was_copied(
    slurm: Cluster, directory: Path, training: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = directory / "disk of the node"
    disk.mkdir()
    # As on a node, where Slurm or the system sets the variable: the run expands the text of the job script.
    monkeypatch.setenv("NODE_DISK", str(disk))
    training("5", slurm={"scratch": "$NODE_DISK"})
    assert on_slurm(directory).code == 0
    wait_for(directory / "held-5")
    (root,) = disk.iterdir()
    slurm.run("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=true")
    slurm.wait_until_empty()

    assert states(directory) == [(None, "finished", 2)]
    assert "interrupted by SIGTERM after step 6" in log_of(directory)
    assert root.name.startswith("emtoolkit-")
    assert list(disk.iterdir()) == []
    assert checkpoints(directory / "out") == of_whole_training(directory)


def test_a_run_near_its_time_limit_is_requeued_until_it_has_finished(
    slurm: Cluster, directory: Path, training: Callable[..., None]
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


def test_two_nodes_train_the_runs_of_one_array_with_the_bytes_of_one_machine(
    slurm: Cluster, directory: Path, write_config: Callable[..., Path], preloaded_python: None
) -> None:
    write_config("schedule: '0-9:3'")
    command = ["${interpreter}", "-m", "emtoolkit", "train", "run.yaml", "--output-dir", "on-{seed}", "${args}"]
    write(directory, [], command=command, parameters={"seed": {"values": [1, 2]}})
    assert on_slurm(directory, "--slurm", "partition=both exclusive").code == 0
    (job,) = {line.partition("_")[0] for line in slurm.queued().splitlines()}
    slurm.wait_until_empty()

    hosts = re.findall(r"BatchHost=(\w+)", slurm.run("scontrol", "show", "job", job, "--oneliner"))
    assert sorted(hosts) == ["first", "second"]
    assert [state for _, state, _ in states(directory)] == ["finished", "finished"]
    for seed in (1, 2):
        done = emtoolkit("train", "run.yaml", "--seed", str(seed), "--output-dir", f"here-{seed}", cwd=directory)
        assert done.code == 0, done.err
        assert checkpoints(directory / f"on-{seed}") == checkpoints(directory / f"here-{seed}")
    assert checkpoints(directory / "on-1") != checkpoints(directory / "on-2")


def test_a_cancelled_run_saves_and_stays_cancelled_until_it_is_submitted_again(
    slurm: Cluster, directory: Path, training: Callable[..., None]
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


def test_a_killed_task_is_said_to_be_and_the_same_command_runs_it_again(slurm: Cluster, directory: Path) -> None:
    write(directory, [8, 9])
    assert on_slurm(directory, "--parallel", "1").code == 0
    slurm.wait_until_empty()
    assert states(directory) == [(8, "interrupted", 1), (9, "interrupted", 1)]
    only, both = (run["error"] for run in json.loads(on_slurm(directory, "--status", "--json").out))
    assert only == "killed by SIGKILL"
    assert re.fullmatch(r"task \d+_1 was killed before its end was recorded \(for Slurm FAILED\): srun: .*", both)

    (directory / "mended").touch()
    assert "with 2 runs; script" in on_slurm(directory).out
    slurm.wait_until_empty()
    assert states(directory) == [(8, "finished", 2), (9, "finished", 2)]


def test_a_node_that_does_not_see_the_directory_is_named(slurm: Cluster, directory: Path) -> None:
    place, elsewhere = directory / "place", directory / "elsewhere"
    place.mkdir()
    write(place, [1])

    def unseen(options: str) -> tuple[str, dict[str, Any]]:
        """The task and the status of a run whose directory is away while the task begins."""
        assert on_slurm(place, "--slurm", f"hold {options}").code == 0
        (task,) = (line.split()[0] for line in slurm.queued().splitlines())
        place.rename(elsewhere)
        slurm.run("scontrol", "release", task)
        slurm.wait_until_empty()
        elsewhere.rename(place)
        (run,) = json.loads(on_slurm(place, "--status", "--json").out)
        assert (run["state"], run["starts"]) == ("failed", 0)
        return task, run

    task, run = unseen("")
    assert run["error"].startswith(f"task {task}: node ")
    assert f"cannot write the log (FAILED, JobLaunchFailure); check that the node sees {place}/outputs" in run["error"]
    # The node can write a log elsewhere.
    task, run = unseen(f"output={directory}/%A_%a.log")
    assert f"does not see {place}; put the directory on a file system" in run["error"]
    assert (directory / f"{task}.log").read_text().splitlines()[-1].startswith("emtoolkit: node ")


def test_a_training_that_the_time_limit_stops_twice_before_a_step_is_not_requeued_for_ever(
    slurm: Cluster, directory: Path, write_config: Callable[..., Path]
) -> None:
    write_config()
    # A training that loads its model for ever.
    program = directory / "emtoolkit"
    program.write_text("#!/bin/sh\ntrap 'exit 143' TERM\necho > held-$(ls | wc -l)\nwhile :; do sleep 0.05; done\n")
    program.chmod(0o755)
    command = ["./emtoolkit", "train", "run.yaml", "${args}"]
    write(directory, [], command=command, parameters={"output_dir": {"value": "out"}})
    assert on_slurm(directory, "--slurm", "time=5 signal=USR1@120").code == 0
    (task,) = (line.split()[0] for line in slurm.queued().splitlines())
    for number in (1, 2):
        end = time.monotonic() + HANG_SECONDS
        while len(list(directory.glob("held-*"))) < number:
            assert time.monotonic() < end
            time.sleep(0.05)
        slurm.run("scancel", "--signal=USR1", task)
        if number == 1:
            slurm.start_requeued()
    slurm.wait_until_empty()
    assert states(directory) == [(None, "failed", 2)]
    (run,) = json.loads(on_slurm(directory, "--status", "--json").out)
    assert run["error"].startswith("the time limit stopped the run 2 times in a row before it had trained its first ")
    assert on_slurm(directory).out == "No run was submitted: 1 have finished or failed.\n"


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
    assert f"\ndirectory={directory}\n" in printed.out
    assert f"srun --ntasks=1 --unbuffered {sys.executable} -m emtoolkit sweep sweep.yaml --only" in printed.out
