"""Locks: a second holder is refused with the path, until the first one releases the lock."""

from pathlib import Path

import pytest
from filelock import FileLock

from emtoolkit.errors import CheckpointError
from emtoolkit.storage.lock import LOCK, InUseError, lock_directory, lock_file


def test_a_lock_is_refused_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / ".world.lock"
    first = lock_file(path)
    with pytest.raises(InUseError, match=r"\.world\.lock: another process holds this lock; wait until that process"):
        lock_file(path)
    first.release()
    lock_file(path).release()


def test_a_locked_directory_is_created_and_named_in_the_refusal(tmp_path: Path) -> None:
    first = lock_directory(tmp_path / "a" / "run")
    with pytest.raises(InUseError, match=r"a/run: this process is saving into it already, such as in another callback"):
        lock_directory(tmp_path / "a" / "run")
    first.release()
    with (
        FileLock(tmp_path / "a" / "run" / LOCK),
        pytest.raises(InUseError, match=r"a/run: another process is saving into it or publishing from it; wait for"),
    ):
        lock_directory(tmp_path / "a" / "run")


def test_a_directory_that_cannot_be_created_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/run: cannot be written to \(Not a directory\)"):
        lock_directory(tmp_path / "file" / "run")
