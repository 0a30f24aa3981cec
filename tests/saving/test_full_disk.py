"""A full disk: the error names the path and the bytes, and earlier checkpoints stay.

A limit on the size of a file replaces the full disk: the same system calls of Python, safetensors and torch fail at the
same places, with another error number.
"""

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.resume_state import newest_resume_state
from tests.saving.callbacks import wait_for_disk
from tests.saving.trainings import base_model, make_trainer


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class WaitsForTheDisk(TrainerCallback):
    """Makes a failed save visible at the end of the next step."""

    def __init__(self, ours: ScheduledCheckpointCallback) -> None:
        self.ours = ours

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.ours._session is not None:
            self.ours._session.disk.wait_for_fewer_than(1)


class DiskFillsUp(WaitsForTheDisk):
    """From step 4 on no file can be longer than `size`; earlier saves are finished first."""

    def __init__(self, size: int, ours: ScheduledCheckpointCallback) -> None:
        super().__init__(ours)
        self.limit = files_of_at_most(size)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            wait_for_disk(self.ours)
            self.limit.__enter__()


@pytest.mark.parametrize("model", ["lora", "full"])
def test_a_full_disk_is_a_sentence_and_earlier_checkpoints_stay(tmp_path: Path, model: str) -> None:
    ours = ScheduledCheckpointCallback("0,2,4", resume_every="never")
    fills_up = DiskFillsUp(500, ours)
    trainer = make_trainer(tmp_path, [fills_up, ours], model=base_model() if model == "full" else None)
    try:
        with pytest.raises(
            CheckpointError,
            match=r"checkpoint-4: could not be written \(File too large\); about [\d,]+ bytes are needed and [\d,]+",
        ):
            trainer.train()
    finally:
        fills_up.limit.__exit__(None, None, None)
    ours.save_after_failure()

    listed = list_checkpoints(tmp_path, rehash=True)
    assert [info.step for info in listed][:2] == [0, 2]
    assert all(info.complete for info in listed)
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_disk_that_is_gone_is_a_sentence_and_nothing_is_written_in_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Unmount(WaitsForTheDisk):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                wait_for_disk(ours)
                (tmp_path / "disk" / "run").rename(tmp_path / "elsewhere")

    ours = ScheduledCheckpointCallback("0,2,4", resume_every="never")
    trainer = make_trainer(tmp_path / "disk" / "run", [Unmount(ours), ours])
    with pytest.raises(CheckpointError, match=r"run/checkpoint-4: could not be written \(No such file or directory\)"):
        trainer.train()
    assert "the last step could not be saved after the training failed" in caplog.text
    assert not (tmp_path / "disk" / "run").exists()
    assert [info.step for info in list_checkpoints(tmp_path / "elsewhere", rehash=True) if info.complete] == [0, 2]


def test_a_disk_that_is_read_only_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, for whom permissions do not count, so `mkdir` is replaced by the system's error."""

    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    ours = ScheduledCheckpointCallback("0,2,4", resume_every="never")

    class Remount(WaitsForTheDisk):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                wait_for_disk(ours)
                monkeypatch.setattr(Path, "mkdir", refuse)

    trainer = make_trainer(tmp_path, [Remount(ours), ours])
    with pytest.raises(CheckpointError, match=r"checkpoint-4: could not be written \(Read-only file system\); about"):
        trainer.train()
    monkeypatch.undo()
    ours.save_after_failure()
    assert [info.step for info in list_checkpoints(tmp_path, rehash=True) if info.complete][:2] == [0, 2]


def test_a_resume_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    ours = ScheduledCheckpointCallback("0", resume_every="2 steps")
    fills_up = DiskFillsUp(1200, ours)  # enough for the weights, not for the optimizer
    trainer = make_trainer(tmp_path, [fills_up, ours], rows=10)  # 5 steps, so that 4 is the only one that fails
    try:
        with pytest.raises(CheckpointError, match=r"resume/checkpoint-4: could not be written"):
            trainer.train()
    finally:
        fills_up.limit.__exit__(None, None, None)
    ours.save_after_failure()
    assert newest_resume_state(tmp_path) == tmp_path / "resume" / "checkpoint-2"


def test_a_run_whose_schedule_does_not_fit_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    from emtoolkit.storage import free_space

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(free_space.shutil, "disk_usage", lambda path: usage(10_000, 8_000, 2_000))
    trainer = make_trainer(tmp_path, [ScheduledCheckpointCallback("every:1", resume_every="never")])
    with pytest.raises(
        CheckpointError, match=r"8 checkpoints of [\d,]+ bytes need [\d,]+ bytes and 2,000 are free; choose a sparser"
    ):
        trainer.train()
    assert list(tmp_path.glob("checkpoint-*")) == []


def test_with_on_error_warn_training_goes_on_and_the_failure_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "checkpoint-2").write_text("in the way")
    ours = ScheduledCheckpointCallback("0,2,4", resume_every="never", on_error="warn")
    make_trainer(tmp_path, [ours]).train()

    assert [info.step for info in list_checkpoints(tmp_path)] == [0, 4, 8]
    assert "a checkpoint could not be saved: " in caplog.text
    assert [str(failure).split(":")[0] for failure in ours.failures] == [str(tmp_path / "checkpoint-2")]
