"""Failures of W&B's client on this machine: its process is killed, it cannot write, it raises. None costs a step."""

import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb

from emtoolkit.artifacts import guarded_run
from emtoolkit.artifacts.client_process import ClientProcess
from emtoolkit.artifacts.guarded_run import GuardedRun
from emtoolkit.artifacts.publish import WandbPublisher
from emtoolkit.artifacts.sync import sync
from emtoolkit.config.load import load_config
from emtoolkit.saving.callback import ScheduledCheckpointCallback
from emtoolkit.saving.signals import TrainingInterrupted
from emtoolkit.training import reusing
from emtoolkit.training.result import RunResult
from emtoolkit.training.run import train
from emtoolkit.training.trainer import _RandomStateKeepingTrainer
from tests.in_process import emtoolkit
from tests.online import EVERYTHING, versions
from tests.processes import HANG_SECONDS
from tests.saving.trainings import saved_steps
from tests.wandb_server import Fault, WandbServer

Run = Callable[..., RunResult]


@pytest.fixture
def run(write_config: Callable[..., Path], tmp_path: Path) -> Run:
    """Train the tiny config for 9 steps into `tmp_path/out`, saving steps 0, 2, 4 and 9."""

    def run(*settings: str) -> RunResult:
        words = ["wandb.project=tests", *settings]
        return train(load_config(str(write_config()), words, {"output_dir": str(tmp_path / "out")}))

    return run


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], object]) -> None:
    """Call `action` in the training of step `number` + 1."""

    def acts(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == number:
            action()
        return step(self, *args, **kwargs)

    step = _RandomStateKeepingTrainer.training_step
    monkeypatch.setattr(_RandomStateKeepingTrainer, "training_step", acts)


def kill_client() -> None:
    process = ClientProcess.current()._process
    assert process is not None
    process.kill()
    process.wait()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.message
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith(("emtoolkit", "asyncio"))
    ]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_training_goes_on_when_wandbs_process_is_killed_and_sync_sends_the_rest(
    mode: str,
    run: Run,
    wandb_server: WandbServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_step(monkeypatch, 3, kill_client)
    result = run(f"wandb.mode={mode}")

    assert [(info.step, info.complete) for info in result.checkpoints] == [(0, True), (2, True), (4, True), (9, True)]
    (told,) = warnings(caplog)
    assert "W&B's process wandb-core ended (SIGKILL)" in told
    assert f"'emtoolkit sync {tmp_path / 'out'}' publishes them" in told
    done = sync(tmp_path / "out")
    assert (done.on_wandb, done.problems) == ((0, 2, 4, 9), ())
    assert versions(wandb_server) == EVERYTHING
    (logged,) = wandb_server.store.project("tester", "tests").runs.values()
    assert logged.state == "failed"
    again = sync(tmp_path / "out")
    assert (again.published, again.logs, again.problems) == ((), (), ())


def test_a_killed_process_of_wandb_is_told_where_every_checkpoint_is_published(
    run: Run, wandb_server: WandbServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = ScheduledCheckpointCallback._close

    def kill_afterwards(self: Any) -> None:
        was_open = self._session is not None
        close(self)
        if was_open:
            kill_client()

    monkeypatch.setattr(ScheduledCheckpointCallback, "_close", kill_afterwards)
    assert run().unpublished == ()
    (told,) = warnings(caplog)
    assert told.startswith("W&B's process wandb-core ended (SIGKILL)")
    assert "'emtoolkit sync" in told


def test_training_goes_on_when_wandbs_process_hangs(
    run: Run, wandb_server: WandbServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded_run, "_CALL_SECONDS", 0.2)
    hangs, released = threading.Event(), threading.Event()
    log = wandb.Run.log

    def log_or_hang(self: wandb.Run, *args: Any, **kwargs: Any) -> None:
        if hangs.is_set():
            released.wait()
        log(self, *args, **kwargs)

    monkeypatch.setattr(wandb.Run, "log", log_or_hang)
    at_step(monkeypatch, 3, hangs.set)
    assert [info.step for info in run("wandb.mode=offline").checkpoints] == [0, 2, 4, 9]
    released.set()
    (told,) = warnings(caplog)
    assert "'emtoolkit sync" in told


@pytest.mark.parametrize("name", ["log", "_config_callback", "define_metric", "_on_finish"])
def test_an_error_of_wandbs_client_is_one_warning(
    name: str, run: Run, wandb_server: WandbServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(wandb.Run, name, fails)
    assert [info.step for info in run("wandb.mode=offline").checkpoints] == [0, 2, 4, 9]
    (told,) = warnings(caplog)
    assert "No space left on device" in told
    assert "'emtoolkit sync" in told


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_training_goes_on_when_wandbs_client_cannot_start(
    mode: str,
    write_config: Callable[..., Path],
    wandb_server: WandbServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    words = ["--output-dir", "out", "--set", "wandb.project=tests", "--set", f"wandb.mode={mode}"]
    with monkeypatch.context() as patch:
        patch.setattr(wandb, "init", fails)
        done = emtoolkit("train", write_config(), *words, cwd=tmp_path)
    assert done.code == 0, done.err
    assert saved_steps(tmp_path / "out") == [0, 2, 4, 9]
    (told,) = warnings(caplog)
    assert told.startswith("W&B's client cannot log this run ([Errno 28] No space left on device); training goes on wi")
    assert told.endswith(f"'emtoolkit sync {tmp_path / 'out'}' publishes the checkpoints")
    assert sync(tmp_path / "out", project="tests").on_wandb == (0, 2, 4, 9)


def test_training_goes_on_where_wandb_can_write_nowhere(
    run: Run,
    wandb_server: WandbServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "file"))
    result = run("wandb.mode=offline")
    assert [info.step for info in result.checkpoints] == [0, 2, 4, 9]
    monkeypatch.delenv("WANDB_DIR")
    assert sync(tmp_path / "out").on_wandb == (0, 2, 4, 9)
    (told,) = warnings(caplog)
    assert f"WANDB_DIR: {tmp_path / 'file'} cannot be written (File exists)" in told


@pytest.mark.subprocess
def test_training_goes_on_where_the_disk_of_wandb_is_full(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    write = Path.write_bytes

    def write_unless_full(path: Path, content: bytes) -> int:
        if path.parent != full or not content:
            return write(path, content)
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", write_unless_full)
    monkeypatch.setenv("WANDB_DIR", str(full))
    assert [info.step for info in run("wandb.mode=offline").checkpoints] == [0, 2, 4, 9]
    (told,) = warnings(caplog)
    assert told.startswith(f"WANDB_DIR: {full} cannot be written (No space left on device), so W&B's log is written to")
    assert list(full.iterdir()) == []
    assert len(list((tmp_path / "out").glob("wandb/offline-run-*/run-*.wandb"))) == 1


@pytest.mark.parametrize(
    ("on", "kind", "wait"),
    [("CreateArtifact", WandbPublisher, "drain"), ("file_stream", GuardedRun, "finish")],
)
def test_a_signal_ends_the_wait_for_wandb_as_it_ends_training(
    on: str,
    kind: type,
    wait: str,
    run: Run,
    wandb_server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wandb_server.faults.add(Fault(on, "hang"))
    sent: list[float] = []
    waits = getattr(kind, wait)

    def interrupt() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        if not sent:
            threading.Timer(0.3, interrupt).start()
        waits(*args, **kwargs)

    monkeypatch.setattr(kind, wait, interrupted)
    with pytest.raises(TrainingInterrupted, match="interrupted by SIGINT after step 9"):
        run(f"wandb.publish_timeout={2 * HANG_SECONDS}")
    # The wait itself would last `publish_timeout`.
    assert time.monotonic() - sent[0] < HANG_SECONDS
    wandb_server.faults.clear()
    assert sync(tmp_path / "out").on_wandb == (0, 2, 4, 9)


@pytest.mark.parametrize("reuse", ["false", "true"])
def test_a_signal_during_the_late_publication_ends_as_one_in_training(
    reuse: str,
    run: Run,
    write_config: Callable[..., Path],
    wandb_server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also that of a run that takes every checkpoint from the store, whose directory exists now: it needs --resume."""
    wandb_server.refuse_connections()
    monkeypatch.setattr(reusing, "publish_if_answered", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    settings = ["wandb.mode=online", f"trajectory.store={tmp_path / 'store'}", f"trajectory.reuse={reuse}"]
    with pytest.raises(TrainingInterrupted, match="interrupted by SIGINT after step 9"):
        run(*settings)
    assert saved_steps(tmp_path / "out") == [0, 2, 4, 9]
    if reuse == "true":
        words = [
            "train",
            write_config(),
            *(f"--{setting}" for setting in settings),
            "--output-dir",
            tmp_path / "second",
        ]
        done = emtoolkit(*words)
        assert (done.code, done.out) == (130, "")
        sentence = (
            "interrupted by SIGINT after step 9; the state is saved, and the same command with --resume continues"
        )
        assert done.err.splitlines()[-1] == f"emtoolkit: {sentence}"
        assert saved_steps(tmp_path / "second") == [0, 2, 4, 9]
        assert emtoolkit(*words, "--resume").code == 0
