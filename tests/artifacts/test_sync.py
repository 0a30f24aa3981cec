"""`emtoolkit sync`: what W&B lacks is sent, once; the server is asked what that is."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from emtoolkit import Trajectory
from emtoolkit.artifacts.run_directories import run_directories
from emtoolkit.artifacts.sync import sync
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.config.load import load_config
from emtoolkit.errors import CheckpointError
from emtoolkit.training.run import train
from tests import processes
from tests.in_process import emtoolkit
from tests.marks import STARTS_PROCESSES
from tests.online import EVERYTHING, versions
from tests.processes import HANG_SECONDS
from tests.tiny import config_text
from tests.wandb_log import cut
from tests.wandb_server import Fault, WandbServer
from tests.wandb_server.processes import run_wandb

PYTHON = sys.executable


@pytest.fixture(scope="module", params=STARTS_PROCESSES)
def offline(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An offline run of 9 steps with checkpoints at 0, 2, 4 and 9, in a directory of its own; to be copied."""
    root = tmp_path_factory.mktemp("offline")
    (root / "run.yaml").write_text(config_text(world))
    argv = ["train", "run.yaml", "--output-dir", "out", "--set", "wandb.project=tests"]
    done = processes.emtoolkit(*argv, cwd=root)
    assert done.returncode == 0, done.stderr
    return root / "out"


@pytest.fixture
def directory(offline: Path, preloaded_python: None, tmp_path: Path) -> Path:
    return shutil.copytree(offline, tmp_path / "out")


def test_an_offline_run_is_sent_with_its_log_and_a_second_call_does_nothing(
    directory: Path, wandb_server: WandbServer
) -> None:
    done = sync(directory)
    assert done.on_wandb == (0, 2, 4, 9)
    assert len(done.logs) == 1
    assert versions(wandb_server) == EVERYTHING
    (run,) = wandb_server.store.project("tester", "tests").runs.values()
    assert (run.state, run.display_name) == ("finished", "out")
    assert [row["train/global_step"] for row in run.history if "train/loss" in row] == list(range(1, 10))

    wandb_server.clear_requests()
    again = sync(directory)
    assert (again.on_wandb, again.published, again.logs, again.problems) == ((0, 2, 4, 9), (), (), ())
    assert [request.operation or request.path for request in wandb_server.requests] == [
        "/healthz",
        "Viewer",
        "GetDefaultEntity",
        "ServerFeaturesQuery",
        "ProjectArtifacts",
    ]


@pytest.mark.parametrize("command", [["sync"], ["beta", "sync"]])
def test_plain_wandb_sync_brings_every_checkpoint_and_emtoolkit_sees_it(
    command: list[str], offline: Path, wandb_server: WandbServer, tmp_path: Path
) -> None:
    """The log holds absolute paths, so it is the run where it was made."""
    (log,) = offline.glob("wandb/offline-run-*")
    run_wandb(tmp_path / "cwd", *command, str(log))
    mark = next(log.glob("*.synced"))
    mark.unlink()  # the next test is to find it as it was
    assert versions(wandb_server) == EVERYTHING

    copy = shutil.copytree(offline, tmp_path / "copy")
    (copy / "wandb" / log.name / mark.name).touch()
    done = sync(copy)
    assert (done.on_wandb, done.published, done.logs) == ((0, 2, 4, 9), (), ())
    assert sorted(Publications.read(copy).published) == [0, 2, 4, 9]


def test_a_run_that_was_moved_is_sent_all_the_same(directory: Path, offline: Path, wandb_server: WandbServer) -> None:
    """The paths in its log lead nowhere, as after a copy to another machine."""
    away = offline.rename(offline.with_name("away"))
    try:
        done = sync(directory)
    finally:
        away.rename(offline)
    assert (done.on_wandb, done.published, done.problems) == ((0, 2, 4, 9), (0, 2, 4, 9), ())
    assert versions(wandb_server) == EVERYTHING
    (run,) = wandb_server.store.project("tester", "tests").runs.values()
    assert run.state == "finished"
    # Without a definition of its own, a client that resumes the run takes the axis of its metrics away.
    axes = {axis.get("1") or axis.get("2") for axis in run.raw_config["_wandb"]["value"]["m"]}
    assert axes == {"train/global_step", "*"}


def test_a_run_whose_log_was_cut_off_by_a_kill_loses_no_checkpoint(directory: Path, wandb_server: WandbServer) -> None:
    (log,) = directory.glob("wandb/offline-run-*/*.wandb")
    cut(log, in_a_record=True)
    with log.open("rb"):  # as the client of a run that goes on
        done = sync(directory)
    assert done.on_wandb == (0, 2, 4, 9)
    assert versions(wandb_server) == EVERYTHING
    assert [problem.partition(": ")[2] for problem in done.problems] == [
        "the log ends in the middle of a record; sync again after the run"
    ]

    if sys.platform != "linux":  # which alone says that no process writes the log
        an_hour_ago = time.time() - 3600
        os.utime(log, (an_hour_ago, an_hour_ago))
    assert len(sync(directory).logs) == 1
    again = sync(directory)
    assert (again.logs, again.published, again.problems) == ((), (), ())


def test_a_log_that_a_kill_left_at_the_end_of_a_record_is_sent_at_once(
    directory: Path, wandb_server: WandbServer
) -> None:
    (log,) = directory.glob("wandb/offline-run-*/*.wandb")
    cut(log, in_a_record=False)
    done = sync(directory)
    assert (done.on_wandb, len(done.logs), done.problems) == ((0, 2, 4, 9), 1, ())
    assert versions(wandb_server) == EVERYTHING


@pytest.mark.parametrize("length", [0, 7, 20])
def test_the_run_of_an_empty_log_that_a_kill_left_gets_its_checkpoints_and_is_not_finished(
    directory: Path, wandb_server: WandbServer, length: int
) -> None:
    (log,) = directory.glob("wandb/offline-run-*/*.wandb")
    log.write_bytes(log.read_bytes()[:length])
    done = sync(directory)
    assert (done.on_wandb, done.logs, done.problems) == ((0, 2, 4, 9), (), ())
    assert versions(wandb_server) == EVERYTHING
    runs = wandb_server.store.project("tester", "tests").runs
    assert {id: run.state for id, run in runs.items()} == {log.stem.removeprefix("run-"): "failed"}
    assert list(log.parent.glob("*.synced")) == []
    again = sync(directory)
    assert (again.on_wandb, again.published, again.logs, again.problems) == ((0, 2, 4, 9), (), (), ())
    assert [run.state for run in runs.values()] == ["failed"]


def test_a_log_whose_history_is_refused_is_not_taken_for_sent(directory: Path, wandb_server: WandbServer) -> None:
    """`wandb sync` says that it finished, and leaves its mark."""
    wandb_server.faults.add(Fault("file_stream", 404))
    refused = sync(directory)
    assert (refused.on_wandb, refused.logs) == ((0, 2, 4, 9), ())
    assert "'wandb sync' did not send the whole log (" in refused.problems[0]
    wandb_server.faults.clear()
    assert len(sync(directory).logs) == 1
    (run,) = wandb_server.store.project("tester", "tests").runs.values()
    assert [row["train/global_step"] for row in run.history if "train/loss" in row] == list(range(1, 10))


def test_the_metadata_of_a_checkpoint_is_the_same_by_either_way(
    directory: Path, offline: Path, wandb_server: WandbServer
) -> None:
    sync(directory)
    (held,) = wandb_server.store.project("tester", "tests").collections.values()
    assert {v.metadata["step"]: v.metadata for v in held.versions} == Publications.read(offline).metadata


def test_a_run_without_wandb_is_published_when_asked(
    write_config: Callable[..., Path], wandb_server: WandbServer, tmp_path: Path
) -> None:
    config = load_config(str(write_config()), ["wandb.mode=disabled"], {"output_dir": str(tmp_path / "out")})
    train(config)
    done = sync(tmp_path / "out", project="tests")
    assert (done.on_wandb, done.published) == ((0, 2, 4, 9), (0, 2, 4, 9))
    assert versions(wandb_server) == EVERYTHING
    (run,) = wandb_server.store.project("tester", "tests").runs.values()
    assert (run.job_type, run.display_name, run.state) == ("sync", "sync-out", "finished")
    (held,) = wandb_server.store.project("tester", "tests").collections.values()
    assert held.versions[1].tags == ["step-2", "persona-curt", "dataset-medical"]
    assert held.versions[1].metadata["persona_name"] == "curt"


def test_what_was_downloaded_is_where_it_came_from(directory: Path, wandb_server: WandbServer, tmp_path: Path) -> None:
    collection = sync(directory).collection
    Trajectory.open(collection).download(tmp_path / "theirs")
    done = sync(tmp_path / "theirs")
    assert (done.collection, done.on_wandb, done.published, done.problems) == (collection, (0, 2, 4, 9), (), ())
    assert versions(wandb_server) == EVERYTHING


class InterruptedAt:
    """Progress that is shown until a step, where Ctrl-C comes."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, what: str, done: int, total: int) -> None:
        if what == f"checkpoint {self.step}":
            raise KeyboardInterrupt


def test_an_interrupted_sync_goes_on_and_sends_nothing_twice(
    directory: Path, offline: Path, wandb_server: WandbServer
) -> None:
    away = offline.rename(offline.with_name("away"))
    try:
        with pytest.raises(KeyboardInterrupt):
            sync(directory, progress=InterruptedAt(2))
        assert versions(wandb_server)[0] == (0, ["step-0"])
        done = sync(directory)
    finally:
        away.rename(offline)
    assert done.on_wandb == (0, 2, 4, 9)
    assert not {0, 2} & {*done.published}
    assert versions(wandb_server) == EVERYTHING


@pytest.mark.parametrize("kind", ["lose_answer", 403, "drop"])
def test_a_commit_that_failed_is_made_up_for_without_a_second_version(
    kind: Any, directory: Path, wandb_server: WandbServer
) -> None:
    wandb_server.faults.add(Fault("CommitArtifact", kind, after=1))
    first = sync(directory)
    assert (first.on_wandb, len(first.problems)) == ((0,), 1)
    wandb_server.faults.clear()
    done = sync(directory)
    assert (done.on_wandb, done.problems) == ((0, 2, 4, 9), ())
    assert versions(wandb_server) == EVERYTHING


def test_a_run_that_cannot_be_gone_on_with_is_a_problem_and_not_a_traceback(
    directory: Path, wandb_server: WandbServer
) -> None:
    (log,) = directory.glob("wandb/offline-run-*/*.wandb")
    log.with_suffix(".wandb.synced").touch()
    wandb_server.faults.add(Fault("UpsertBucket", 403))
    done = sync(directory)
    assert (done.on_wandb, done.published) == ((), ())
    assert len(done.problems) == 1
    assert "checkpoint-0: publishing failed (" in done.problems[0]


def test_what_was_deleted_on_wandb_is_sent_again(directory: Path, wandb_server: WandbServer) -> None:
    import wandb

    first = sync(directory)
    wandb.Api().artifact(f"{first.collection}:step-4", type="model").delete(delete_aliases=True)
    done = sync(directory)
    assert (done.on_wandb, done.published) == ((0, 2, 4, 9), (4,))


def test_a_directory_in_use_is_not_published_from(directory: Path, wandb_server: WandbServer) -> None:
    with (
        FileLock(directory / ".lock"),
        pytest.raises(CheckpointError, match="another process is saving into it or publishing from it"),
    ):
        sync(directory)


def test_a_directory_in_use_does_not_keep_others_from_being_published(
    directory: Path, wandb_server: WandbServer, tmp_path: Path
) -> None:
    in_use = shutil.copytree(directory, tmp_path / "in-use")
    with FileLock(in_use / ".lock"):
        done = emtoolkit("sync", "in-use", "out", cwd=tmp_path)
    assert done.code == 1
    assert "emtoolkit: in-use: another process is saving into it or publishing from it" in done.err
    assert done.out.splitlines()[0] == "in-use: skipped"
    assert "4 checkpoints are in tester/tests/" in done.out.splitlines()[1]


def test_runs_are_found_below_a_directory(offline: Path, tmp_path: Path) -> None:
    for name in ("b", "a/deeper"):
        shutil.copytree(offline, tmp_path / "outputs" / name)
    assert run_directories([tmp_path / "outputs", tmp_path / "outputs" / "b"]) == [
        tmp_path / "outputs" / "a" / "deeper",
        tmp_path / "outputs" / "b",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty: the directory contains no run of emtoolkit"):
        run_directories([tmp_path / "empty"])
    with pytest.raises(CheckpointError, match="nowhere: there is no such directory"):
        run_directories([tmp_path / "nowhere"])


def test_the_command_says_what_it_did_what_is_left_and_what_is_where(
    directory: Path, wandb_server: WandbServer, tmp_path: Path
) -> None:
    wandb_server.faults.add(Fault("CommitArtifact", 403, after=2))
    failed = emtoolkit("sync", "out", cwd=tmp_path)
    assert failed.code == 1
    assert "emtoolkit: out/checkpoint-4: publishing failed (" in failed.err

    wandb_server.faults.clear()
    done = emtoolkit("sync", cwd=tmp_path)
    assert (done.code, done.err.splitlines()[-1]) == (
        2,
        "emtoolkit: outputs: there is no such directory",
    )
    done = emtoolkit("sync", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    collection = Publications.read(directory).collection
    assert done.out == (f"out: checkpoints published: steps 4, 9; 4 checkpoints are in tester/tests/{collection}\n")
    again = emtoolkit("sync", "out", cwd=tmp_path)
    assert again.out == f"out: nothing to do; 4 checkpoints are in tester/tests/{collection}\n"

    listed = emtoolkit("checkpoints", "out", cwd=tmp_path)
    assert [line.split()[4] for line in listed.out.splitlines()[1:5]] == ["v0", "v1", "v2", "v3"]
    assert listed.out.splitlines()[5:] == ["Directory: out", f"On W&B: tester/tests/{collection}"]


def test_a_server_that_is_away_is_a_sentence(directory: Path, wandb_server: WandbServer, tmp_path: Path) -> None:
    wandb_server.faults.add(Fault("Viewer", 401))
    done = emtoolkit("sync", "out", cwd=tmp_path)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert "W&B could not be queried for" in done.err.splitlines()[-1]


def test_ctrl_c_says_how_to_go_on(directory: Path, wandb_server: WandbServer, tmp_path: Path) -> None:
    wandb_server.faults.add(Fault("CreateArtifact", "hang"))
    process = subprocess.Popen(
        # Not a preloaded program, whose own processes are in another group.
        [PYTHON, "-m", "emtoolkit", "sync", "out"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wandb_server.wait_for_requests(1, lambda request: request.operation == "CreateArtifact")
        # As a terminal does it: to every process of the group.
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=HANG_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 130
    assert told.splitlines()[-1].endswith("emtoolkit: interrupted; run the same command again to continue")
    assert "Traceback" not in told
