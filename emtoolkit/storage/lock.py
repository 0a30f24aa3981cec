"""File locks: one process at a time writes into a directory."""

import fcntl
import os
from pathlib import Path
from weakref import WeakValueDictionary

from filelock import FileLock, Timeout

from emtoolkit.errors import CheckpointError

LOCK = ".lock"
# As a timeout: wait until the other process releases the lock.
FOREVER = -1.0
# A process that only looks whether the lock is held has it for less than a millisecond.
_SECONDS_OF_A_LOOK = 0.1
# The locks of directories that a process has taken and not dropped, for the message only; a fork holds none of them.
_HELD: WeakValueDictionary[tuple[int, Path], FileLock] = WeakValueDictionary()


class InUseError(CheckpointError):
    """Another process holds the lock."""


def lock_file(path: Path, *, timeout: float = 0.0) -> FileLock:
    """Acquire the lock file `path`, whose parent must exist, within `timeout` seconds.

    The operating system releases the lock when the process ends, however it ends; the file stays.

    Raises:
        InUseError: another process holds the lock.
        CheckpointError: the file cannot be created.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise InUseError(f"{path}: another process holds this lock; wait until that process ends") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be locked ({error.strerror or error})") from error
    return lock


def is_locked(directory: Path) -> bool:
    """Whether another process, on a machine whose locks this one sees, holds the lock of `directory`.

    Raises:
        CheckpointError: the lock cannot be tried.
    """
    if not (directory / LOCK).exists():
        return False
    try:
        lock_directory(directory, timeout=0.0).release()
    except InUseError:
        return True
    return False


def inherited_lock(path: Path) -> int | None:
    """The descriptor of the locked file `path`; None if another process holds the lock.

    A child that inherits the descriptor holds the lock, too, until it ends.

    Raises:
        OSError: the file cannot be created, or its file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def release_inherited(descriptor: int) -> None:
    """Release the lock of `inherited_lock`, in every process that holds it."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def lock_directory(directory: Path, *, timeout: float = _SECONDS_OF_A_LOOK) -> FileLock:
    """Create `directory` if it does not exist, and acquire its lock within `timeout` seconds.

    Raises:
        InUseError: another process holds the lock.
        CheckpointError: the directory is not writable.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = lock_file(directory / LOCK, timeout=timeout)
    except InUseError:
        if (own := _HELD.get((os.getpid(), directory.resolve()))) is not None and own.is_locked:
            raise InUseError(
                f"{directory}: this process is saving into it already, such as in another callback; choose another "
                "output directory"
            ) from None
        raise InUseError(
            f"{directory}: another process is saving into it or publishing from it; wait for that process, or choose "
            "another output directory"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be written to ({error.strerror or error})") from error
    _HELD[os.getpid(), directory.resolve()] = lock
    return lock
