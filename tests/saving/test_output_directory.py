"""An output directory that is opened once: its steps, the end of training, and the three checks."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.manifest import TrajectorySeal
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.output_directory import OutputDirectory
from emtoolkit.storage.lock import InUseError, lock_directory

IDENTITY = Identity(fingerprinted={"seed": 7})
OTHER = Identity(fingerprinted={"seed": 8})


def write_run(directory: Path, *steps: int, ended_at: int | None = None, fingerprinted: bool = True) -> OutputDirectory:
    """A run of `IDENTITY` with checkpoints at `steps`, opened."""
    directory.mkdir()
    values = IDENTITY.fingerprinted if fingerprinted else {}
    TrajectoryRecord(IDENTITY.fingerprint, 8, "0,2,4", values, ended_at).write(directory)
    for step in steps:
        (directory / checkpoint_name(step)).mkdir()
        (directory / checkpoint_name(step) / "adapter_model.safetensors").write_bytes(b"weights")
        TrajectorySeal(IDENTITY, 8).seal(directory / checkpoint_name(step), step)
    return OutputDirectory.open(directory)


def test_a_directory_that_does_not_exist_holds_nothing(tmp_path: Path) -> None:
    directory = OutputDirectory.open(tmp_path / "nowhere")
    assert not directory.holds_a_run
    assert directory.first_missing([0, 2]) == 0
    directory.check_belongs_to(IDENTITY)
    directory.check_not_in_use()


@pytest.mark.parametrize(("ended_at", "missing"), [(None, 4), (8, 4), (2, None)])
def test_the_first_missing_step_is_one_that_training_reached(
    tmp_path: Path, ended_at: int | None, missing: int | None
) -> None:
    directory = write_run(tmp_path / "run", 0, 2, ended_at=ended_at)
    assert directory.complete_steps == {0, 2}
    assert directory.first_missing([0, 2, 4, 8]) == missing


def test_a_damaged_checkpoint_is_missing(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 0, 2)
    (tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors").unlink()
    assert OutputDirectory.open(tmp_path / "run").first_missing([0, 2]) == 2


def test_another_trajectory_is_refused_with_the_differences_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run: holds another trajectory \(seed is 7 there and 8 here\); choose"):
        write_run(tmp_path / "run", 0).check_belongs_to(OTHER)
    downloaded = write_run(tmp_path / "downloaded", 0, fingerprinted=False)
    sentence = rf"another trajectory \({IDENTITY.fingerprint[:8]}, not {OTHER.fingerprint[:8]}\); choose another dir"
    with pytest.raises(CheckpointError, match=sentence):
        downloaded.check_belongs_to(OTHER)


def test_room_is_needed_only_for_steps_that_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_run(tmp_path / "run", 0, 2)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10_000, 8_000, 2_000))
    directory.check_room([0, 2, 4, 8], 1_000)
    with pytest.raises(CheckpointError, match=r"4 checkpoints of 1,001 bytes need 2,002 bytes and 2,000 are free"):
        directory.check_room([0, 2, 4, 8], 1_001)


def test_a_directory_that_another_process_saves_into_is_in_use(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", 0)
    lock = lock_directory(tmp_path / "run")
    with pytest.raises(InUseError):
        directory.check_not_in_use()
    lock.release()
    directory.check_not_in_use()
