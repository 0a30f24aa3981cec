"""One process at a time writes into a directory of checkpoints."""

from pathlib import Path

from filelock import FileLock, Timeout

from emtoolkit.errors import CheckpointError

LOCK = ".lock"


class InUseError(CheckpointError):
    """Another process has the lock of a directory."""


def lock_directory(directory: Path, *, timeout: float = 0.0) -> FileLock:
    """The lock of `directory`, which is made if it is not there, taken within `timeout` seconds.

    Raises:
        InUseError: another process has it.
        CheckpointError: the directory cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK)
        lock.acquire(timeout=timeout)
    except Timeout:
        raise InUseError(
            f"{directory}: another process is saving into it or publishing from it; wait for it, or choose another "
            "output directory"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{directory}: it cannot be written to ({error.strerror or error})") from error
    return lock
