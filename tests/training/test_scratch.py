"""`$EMTOOLKIT_SCRATCH`: a run writes to a disk of its node, and its directory gets everything."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from transformers import TrainerCallback

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.config.load import load_config
from emtoolkit.config.sections import RunConfig
from emtoolkit.errors import CheckpointError, ConfigError, UserError
from emtoolkit.saving import requests
from emtoolkit.saving.signals import TrainingInterrupted
from emtoolkit.storage import copies
from emtoolkit.storage.lock import LOCK, InUseError, is_locked
from emtoolkit.training import run, scratch
from tests.processes import HANG_SECONDS
from tests.saving.trainings import bytes_of, saved_steps

Config = Callable[..., RunConfig]


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scratch disk of a node."""
    disk = tmp_path / "disk"
    disk.mkdir()
    monkeypatch.setenv("EMTOOLKIT_SCRATCH", str(disk))
    return disk


@pytest.fixture
def config(write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)

    def load(name: str = "out", *settings: str, checkpointing: str = "schedule: '0-4:2'") -> RunConfig:
        path = write_config(checkpointing)
        return load_config(str(path), ["wandb.mode=disabled", *settings], {"output_dir": name})

    return load


def without_scratch(monkeypatch: pytest.MonkeyPatch, config: RunConfig) -> Path:
    with monkeypatch.context() as context:
        context.delenv("EMTOOLKIT_SCRATCH")
        run.train(config)
    return config.directory()


def weights(directory: Path) -> dict[str, bytes]:
    return {name: content for name, content in bytes_of(directory).items() if name.startswith("checkpoint-")}


@pytest.mark.slow
def test_a_run_on_a_scratch_disk_leaves_what_a_run_without_one_leaves(
    disk: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run.train(config())
    whole = without_scratch(monkeypatch, config("whole"))
    assert result.directory == Path("out").absolute()
    assert [(info.step, info.path.parent) for info in result.checkpoints] == [
        (step, Path("out").absolute()) for step in (0, 2, 4, 9)
    ]
    assert weights(Path("out")) == weights(whole)
    assert {path.name for path in Path("out").iterdir()} == {path.name for path in whole.iterdir()}
    # The places in the records are those that remain.
    resolved = yaml.safe_load(Path("out/config.yaml").read_text())
    assert resolved["output_dir"] == str(Path("out").absolute())
    assert resolved["trajectory"]["store"] == str(Path("outputs/.trajectories").absolute())
    assert b"emtoolkit-run" not in b"".join(bytes_of(Path("out")).values())
    assert list(disk.iterdir()) == []
    assert not is_locked(Path("out"))


class Stop(TrainerCallback):
    """A signal at the end of a step, once `ready` says that it may come."""

    def __init__(self, step: int, ready: Callable[[], bool]) -> None:
        self.step, self.ready = step, ready

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            wait_until(self.ready)
            signal.raise_signal(signal.SIGTERM)


def wait_until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + HANG_SECONDS
    while not happens() and time.monotonic() < end:
        time.sleep(0.01)


def with_callback(callback: TrainerCallback, call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    made = run.make_trainer

    def make_trainer(*args: Any, callbacks: list[Any], **kwargs: Any) -> Any:
        return made(*args, callbacks=[callback, *callbacks], **kwargs)

    with monkeypatch.context() as context:
        context.setattr(run, "make_trainer", make_trainer)
        call()


def stopped_at(
    step: int, config: RunConfig, monkeypatch: pytest.MonkeyPatch, ready: Callable[[], bool] = lambda: True
) -> None:
    with pytest.raises(TrainingInterrupted):
        with_callback(Stop(step, ready), lambda: run.train(config), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("reuse", [False, True])
def test_a_stopped_run_continues_on_another_node_with_the_same_bytes(
    disk: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reuse: bool
) -> None:
    words = [f"trajectory.reuse={str(reuse).lower()}"]
    with monkeypatch.context() as context:
        # A scheduler repeats its signal while the rest is copied.
        write = copies.write_directory
        context.setattr(copies, "write_directory", lambda *args: (signal.raise_signal(signal.SIGTERM), write(*args)))
        stopped_at(5, config("out", *words), monkeypatch)
    home = next(Path("outputs/.trajectories").glob("*-*")) if reuse else Path("out")
    assert saved_steps(home / "resume") == [5]
    assert list(disk.iterdir()) == []

    (tmp_path / "other disk").mkdir()
    monkeypatch.setenv("EMTOOLKIT_SCRATCH", str(tmp_path / "other disk"))
    run.train(config("out", *words), resume=True)
    assert saved_steps(Path("out")) == [0, 2, 4, 9]
    assert saved_steps(home) == [0, 2, 4, 9]
    assert not (home / "resume").exists()
    whole = without_scratch(monkeypatch, config("whole", "trajectory.store=elsewhere", *words))
    assert weights(Path("out")) == weights(whole)


@pytest.mark.slow
def test_what_a_killed_run_has_copied_while_it_trained_is_enough_to_continue(
    disk: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "_SECONDS_BETWEEN_COPIES", 0.01)
    # A killed process copies nothing at its end.
    with monkeypatch.context() as context:
        context.setattr(scratch.Scratch, "_leave", lambda self, copied: None)
        stopped_at(6, config(), monkeypatch, Path("out/checkpoint-4").exists)
    assert {0, 2, 4} <= {*saved_steps(Path("out"))}
    assert all(info.complete for info in list_checkpoints(Path("out"), rehash=True))
    run.train(config(), resume=True)
    assert weights(Path("out")) == weights(without_scratch(monkeypatch, config("whole")))


@pytest.mark.slow
def test_runs_of_one_trajectory_share_a_training_on_a_scratch_disk_and_their_files(
    disk: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run.train(config("first", "trajectory.reuse=true", "trajectory.also_save='0-9:3'"))
    second = run.train(config("second", "trajectory.reuse=true", checkpointing="schedule: '0-9:3'"))
    assert (first.trained_steps, second.trained_steps) == (9, 0)
    assert (saved_steps(Path("first")), saved_steps(Path("second"))) == ([0, 2, 4, 9], [0, 3, 6, 9])
    (store,) = Path("outputs/.trajectories").glob("*-*")
    # One file under three names, as without a scratch disk.
    files = [home / "checkpoint-9" / "adapter_model.safetensors" for home in (store, Path("first"), Path("second"))]
    assert {(file.stat().st_ino, file.stat().st_nlink) for file in files} == {(files[0].stat().st_ino, 3)}
    assert Publications.read(Path("first")).store == store.absolute()
    assert list(disk.iterdir()) == []


@pytest.mark.slow
def test_an_output_directory_that_is_full_ends_with_the_place_of_the_rest(
    disk: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *args: Any) -> None:
        raise CheckpointError(f"{path}: could not be written (No space left on device)")

    with monkeypatch.context() as context:
        context.setattr(copies, "write_directory", full)
        with pytest.raises(CheckpointError, match=r"No space left on device\); what was not copied stays in (.*) on "):
            run.train(config())
    (root,) = disk.iterdir()
    (rest,) = root.rglob("out")
    assert saved_steps(rest) == [0, 2, 4, 9]
    assert saved_steps(Path("out")) == []
    # Another run leaves that alone, and deletes what a killed process left.
    (disk / "emtoolkit-7-killed").mkdir()
    (disk / "of-others").mkdir()
    run.train(config(), resume=True)
    assert {path.name for path in disk.iterdir()} == {root.name, "of-others"}
    assert saved_steps(Path("out")) == [0, 2, 4, 9]


@pytest.mark.slow
def test_a_request_in_the_output_directory_reaches_the_run_and_so_does_the_answer(
    disk: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "_SECONDS_BETWEEN_COPIES", 0.01)
    monkeypatch.setattr(requests, "_SECONDS_BETWEEN_LOOKS", 0.0)

    class Ask(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                Path("out/save-now").write_text("token")
                wait_until(lambda: not Path("out/save-now").exists())

    with_callback(Ask(), lambda: run.train(config()), monkeypatch)
    assert saved_steps(Path("out")) in ([0, 2, 4, 5, 9], [0, 2, 4, 6, 9])
    ((_, token, saved),) = Publications.read(Path("out")).answers
    assert (token, saved) == ("token", True)
    assert not Path("out/save-now").exists()


def test_a_scratch_disk_that_is_not_there_is_one_sentence_and_starts_nothing(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, sentence in (
        (
            str(tmp_path / "none"),
            rf"\$EMTOOLKIT_SCRATCH: {tmp_path}/none cannot be written to on .* \(No such file or d",
        ),
        (
            str(tmp_path / "run.yaml"),
            r"run\.yaml cannot be written to on .* \(Not a directory\); name a directory on a",
        ),
        ("$NOT_SET/x", "the environment variable NOT_SET is not set"),
    ):
        monkeypatch.setenv("EMTOOLKIT_SCRATCH", value)
        with pytest.raises(ConfigError, match=sentence):
            run.train(config())
    assert not Path("out").exists()


def test_a_run_that_is_refused_leaves_no_directory(disk: Path, config: Config) -> None:
    with pytest.raises(UserError, match=r"9999"):
        run.train(config(checkpointing="schedule: '9999'"))
    assert not Path("out").exists()
    assert list(disk.iterdir()) == []


def test_an_output_directory_in_use_is_refused(disk: Path, config: Config) -> None:
    Path("out").mkdir()
    with FileLock(Path("out") / LOCK), pytest.raises(InUseError, match=r"out: another process is saving into it"):
        run.train(config())
    assert list(disk.iterdir()) == []
