"""Whole runs against a W&B server that works or fails: published checkpoints, waiting time, and no losses."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.artifacts import publish, server
from emtoolkit.artifacts.sync import sync
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.config.load import load_config
from emtoolkit.errors import ConfigError
from emtoolkit.training import wandb_run
from emtoolkit.training.result import RunResult
from emtoolkit.training.run import train
from emtoolkit.training.trainer import _RandomStateKeepingTrainer
from tests.online import EVERYTHING, versions
from tests.processes import HANG_SECONDS, emtoolkit
from tests.wandb_server import Fault, WandbServer

# For `wandb sync`.
pytestmark = pytest.mark.usefixtures("preloaded_python")
Run = Callable[..., RunResult]


@pytest.fixture
def run(write_config: Callable[..., Path], tmp_path: Path) -> Run:
    """Train the tiny config online for 9 steps into `tmp_path/out`, saving steps 0, 2, 4 and 9."""

    def run(*settings: str, name: str = "out") -> RunResult:
        words = ["wandb.project=tests", *settings]
        return train(load_config(str(write_config()), words, {"output_dir": str(tmp_path / name)}))

    return run


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.message
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("emtoolkit")
    ]


def test_a_published_checkpoint_is_committed_on_the_server(
    run: Run, wandb_server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = run()
    assert versions(wandb_server) == EVERYTHING
    (collection,) = wandb_server.store.project("tester", "tests").collections
    assert {step: each.artifact for step, each in Publications.read(tmp_path / "out").published.items()} == {
        0: f"tester/tests/{collection}:v0",
        2: f"tester/tests/{collection}:v1",
        4: f"tester/tests/{collection}:v2",
        9: f"tester/tests/{collection}:v3",
    }
    assert [info.published for info in result.checkpoints] == [f"tester/tests/{collection}:v{i}" for i in range(4)]
    assert (result.unpublished, warnings(caplog)) == ((), [])
    assert [each.is_synced for runs in Publications.read(tmp_path / "out").runs.values() for each in runs] == [True]


def test_a_run_is_named_grouped_tagged_and_described_for_wandbs_own_table(run: Run, wandb_server: WandbServer) -> None:
    run("wandb.tags=[mine]")
    (logged,) = wandb_server.store.project("tester", "tests").runs.values()
    assert (logged.display_name, logged.group, logged.tags) == (
        "out",
        next(iter(wandb_server.store.project("tester", "tests").collections)),
        ["curt", "medical", "0-4:2", "mine"],
    )
    assert {key: logged.config[key] for key in ("persona", "dataset", "schedule", "seed")} == {
        "persona": "curt",
        "dataset": "medical",
        "schedule": "0-4:2",
        "seed": 42,
    }
    assert (logged.state, logged.exit_code) == ("finished", 0)
    assert logged.summary["checkpoints"] == 4
    assert logged.summary["checkpoint_bytes"] > 4000
    assert [row["train/global_step"] for row in logged.history if "train/loss" in row] == list(range(1, 10))


def test_a_second_run_of_a_trajectory_makes_no_new_version(run: Run, wandb_server: WandbServer) -> None:
    run()
    run("checkpointing.schedule=0,2,6", name="elsewhere")
    assert versions(wandb_server) == [
        (0, ["step-0"]),
        (1, ["step-2"]),
        (2, ["step-4"]),
        # W&B's `latest` moves to the version that was logged last, even to an existing one.
        (3, ["final", "latest", "step-9"]),
        (4, ["step-6"]),
    ]


# The fault, whether the run is online anyway, and the number of checkpoints on the server at the end.
FAULTS: dict[str, tuple[list[Fault] | str, bool, int]] = {
    "no connection": ("refuse", False, 0),
    "key refused at the start": ([Fault("UpsertBucket", 401)], False, 0),
    "key refused later": ([Fault("CreateArtifact", 401)], True, 0),
    "artifacts answered 500": ([Fault("CreateArtifact", 500)], True, 0),
    "artifacts answered 429": ([Fault("CreateArtifact", 429)], True, 0),
    "artifacts hang": ([Fault("CreateArtifact", "hang")], True, 0),
    "uploads hang": ([Fault("PUT", "hang")], True, 0),
    "uploads cut": ([Fault("PUT", "cut")], True, 0),
    "third commit refused": ([Fault("CommitArtifact", 403, after=2)], True, 2),
    "history refused": ([Fault("file_stream", 404)], True, 4),
    "history hangs": ([Fault("file_stream", "hang")], True, 4),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_server_costs_neither_the_run_nor_a_checkpoint(
    fault: str,
    run: Run,
    wandb_server: WandbServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    what, online, taken = FAULTS[fault]
    if isinstance(what, str):
        wandb_server.refuse_connections()
    else:
        for each in what:
            wandb_server.faults.add(each)
    caplog.set_level(logging.INFO)

    # The run waits for uploads that can succeed, even on a busy machine; 9 s remain for the run's log.
    monkeypatch.setattr(wandb_run, "_LOG_FRACTION", 0.03 if taken else wandb_run._LOG_FRACTION)
    # Only a server that goes on failing takes a run to this bound: the log of an offline run takes each checkpoint.
    result = run(f"wandb.publish_timeout={3 if online and not taken else HANG_SECONDS}")

    assert [(info.step, info.complete) for info in result.checkpoints] == [(0, True), (2, True), (4, True), (9, True)]
    assert len(told := warnings(caplog)) == 1, told
    assert "emtoolkit sync" in told[0]
    # The attempt to publish at the end does not repeat the command.
    assert [text for record in caplog.records if "'emtoolkit sync" in (text := record.getMessage())] == told
    assert result.wandb_directory is not None
    assert result.wandb_directory.name.startswith("run-") == online
    assert sum(info.published is not None for info in result.checkpoints) == taken

    wandb_server.faults.clear()
    wandb_server.accept_connections()
    done = sync(tmp_path / "out")
    assert (done.on_wandb, done.problems) == ((0, 2, 4, 9), ())
    assert versions(wandb_server) == EVERYTHING
    (logged,) = wandb_server.store.project("tester", "tests").runs.values()
    assert logged.state == "finished"
    assert [row["train/global_step"] for row in logged.history if "train/loss" in row] == list(range(1, 10))
    assert all(info.published for info in list_checkpoints(tmp_path / "out"))

    again = sync(tmp_path / "out")
    assert (again.on_wandb, again.published, again.logs, again.problems) == ((0, 2, 4, 9), (), (), ())


@pytest.mark.parametrize("on", ["CreateArtifact", "PUT", "CommitArtifact"])
def test_a_lost_answer_makes_no_second_version(on: str, run: Run, wandb_server: WandbServer) -> None:
    wandb_server.faults.add(Fault(on, "lose_answer", times=1))
    assert run(f"wandb.publish_timeout={HANG_SECONDS}").unpublished == ()
    assert versions(wandb_server) == EVERYTHING


def test_a_server_that_comes_back_gets_the_missed_checkpoints_during_training(
    run: Run, wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publish, "_PAUSES", (0.01,))
    caplog.set_level(logging.INFO)
    wandb_server.faults.add(Fault("CreateArtifact", 403, times=2))
    assert run(f"wandb.publish_timeout={HANG_SECONDS}").unpublished == ()
    assert versions(wandb_server) == EVERYTHING
    assert warnings(caplog) == []


def test_one_refused_probe_makes_no_run_offline(
    run: Run, wandb_server: WandbServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.time, "sleep", lambda _: wandb_server.accept_connections())
    wandb_server.refuse_connections()
    assert run().unpublished == ()
    assert versions(wandb_server) == EVERYTHING
    assert warnings(caplog) == []


def test_a_run_that_began_offline_is_published_at_its_end_if_wandb_answers_then(
    run: Run, wandb_server: WandbServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def comes_back(self: Any, *args: Any, **kwargs: Any) -> Any:
        wandb_server.accept_connections()
        return step(self, *args, **kwargs)

    step = _RandomStateKeepingTrainer.training_step
    monkeypatch.setattr(_RandomStateKeepingTrainer, "training_step", comes_back)
    wandb_server.refuse_connections()
    run()
    assert versions(wandb_server) == EVERYTHING
    (logged,) = wandb_server.store.project("tester", "tests").runs.values()
    assert logged.state == "finished"
    (told,) = warnings(caplog)
    assert "it is published at its end if W&B answers then, and otherwise by 'emtoolkit sync'" in told


def test_require_online_fails_before_anything_is_loaded_or_written(
    run: Run, wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb_server.refuse_connections()
    with pytest.raises(ConfigError, match=r"wandb\.require_online: true, and W&B does not answer \(no connection"):
        run("wandb.require_online=true")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(ConfigError, match=r"wandb\.require_online: true, and the mode is offline; set wandb\.mode"):
        run("wandb.require_online=true")


def test_require_online_fails_when_the_server_refuses_the_run(run: Run, wandb_server: WandbServer) -> None:
    wandb_server.faults.add(Fault("UpsertBucket", 403))
    with pytest.raises(ConfigError, match=r"wandb\.require_online: true, and W&B did not begin the run"):
        run("wandb.require_online=true")


def test_the_api_key_is_in_no_file_and_no_upload(run: Run, wandb_server: WandbServer, tmp_path: Path) -> None:
    run()
    sync(tmp_path / "out")
    key = wandb_server.api_key.encode()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 30
    assert [file for file in files if key in file.read_bytes()] == []
    (logged,) = wandb_server.store.project("tester", "tests").runs.values()
    assert wandb_server.api_key not in repr((logged.config, logged.summary, logged.history))


def test_a_failed_training_is_a_failed_run_whose_checkpoints_are_there(
    run: Run, wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step == 3:
            raise RuntimeError("out of luck")
        return step(self, *args, **kwargs)

    step = _RandomStateKeepingTrainer.training_step
    monkeypatch.setattr(_RandomStateKeepingTrainer, "training_step", fails)
    with pytest.raises(RuntimeError, match="out of luck"):
        run()
    (logged,) = wandb_server.store.project("tester", "tests").runs.values()
    assert (logged.state, logged.exit_code) == ("failed", 1)
    assert versions(wandb_server) == [(0, ["step-0"]), (1, ["step-2"]), (2, ["latest", "step-3"])]


@pytest.mark.subprocess
def test_variables_that_the_client_cannot_read_but_nobody_means_cost_nothing(
    write_config: Callable[..., Path], wandb_server: WandbServer, tmp_path: Path
) -> None:
    """In a process of its own, since the client reads the environment once."""
    words = ("--set", "wandb.project=tests", "--set", "wandb.mode=online", "--output-dir", tmp_path / "out")
    variables = {
        "WANDB_MODE": "",
        "WANDB_API_KEY": f"{wandb_server.environment()['WANDB_API_KEY']}\n",
        "WANDB_PROJECT": "a/b",  # the config names another one
        "WANDB_RESUME": "must",  # emtoolkit knows whether the run goes on
        "WANDB_TAGS": "a,, b",
    }
    done = emtoolkit("train", write_config(), *words, cwd=tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    assert versions(wandb_server) == EVERYTHING, done.stderr
    (run,) = wandb_server.store.project("tester", "tests").runs.values()
    assert run.state == "finished"
    assert run.tags[-2:] == ["a", "b"]
