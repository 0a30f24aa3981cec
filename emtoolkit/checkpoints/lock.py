"""One process at a time writes into a directory of checkpoints."""

from pathlib import Path

from filelock import FileLock, Timeout

from emtoolkit.errors import CheckpointError

LOCK = ".lock"


def lock_directory(directory: Path, *, timeout: float = 0.0) -> FileLock:
    """The lock of `directory`, which is made if it is not there, taken within `timeout` seconds.

    Raises:
        CheckpointError: another process has it, or the directory cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK)
        lock.acquire(timeout=timeout)
    except Timeout:
        raise CheckpointError(
            f"{directory}: another process is saving into it or publishing from it; wait for it, or choose another "
            "output directory"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{directory}: it cannot be written to ({error.strerror or error})") from error
    return lock
