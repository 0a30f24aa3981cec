"""Atomic writes: a file or directory is complete under its name or absent, even after a power failure.

Each write goes to a temporary name, is flushed to the disk with fsync, renamed, and the rename is flushed too.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from emtoolkit.errors import CheckpointError
from emtoolkit.regular_files import NO_SYMLINK

TEMPORARY = ".tmp-"

Filled = TypeVar("Filled")


def write_file(path: Path, content: bytes) -> None:
    """Replace the file `path` by `content`. A reader sees the old file or the new file, never a part of either.

    Raises:
        CheckpointError: the disk is full, read-only or missing; the old file stays.
    """
    temporary = _temporary(path)
    with _explained(path, len(content)):
        try:
            # A symlink under the temporary name would lead the content into a file elsewhere.
            with open(temporary, "wb", opener=lambda path, flags: os.open(path, flags | NO_SYMLINK, 0o666)) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_directory(path.parent)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def write_directory(path: Path, fill: Callable[[Path], Filled], expected_bytes: int) -> Filled:
    """Create or replace the directory `path` with the files that `fill` writes into an empty one; its value.

    The directory appears under its final name only after every file is on disk, and until then an existing directory
    of that name stays complete. The parent must exist: creating the parent of an unmounted disk would put checkpoints
    onto another disk. `expected_bytes` is only for the error message.

    Raises:
        CheckpointError: the disk is full, read-only or missing. The name is unused then, or still has its old content.
    """
    temporary = _temporary(path)
    with _explained(path, expected_bytes):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            filled = fill(temporary)
            _sync_tree(temporary)
            if path.exists():
                _remove(path)
            temporary.rename(path)
            sync_directory(path.parent)
            return filled
        except Exception:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def remove_temporaries(directories: Iterable[Path]) -> None:
    """Delete what interrupted writes left in `directories`; the caller holds their lock."""
    for directory in directories:
        for left_over in directory.glob(f"{TEMPORARY}*"):
            if left_over.is_dir() and not left_over.is_symlink():
                shutil.rmtree(left_over)
            else:
                left_over.unlink()


def remove_directory(path: Path) -> None:
    """Delete the directory `path`, if it exists, so that no reader sees a part of it under its name."""
    if path.exists():
        _remove(path)
        sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Wait until the content of `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# The names in a directory are on disk only after an fsync of the directory itself, which may be opened read-only.
sync_directory = sync_file


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")


def _sync_tree(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir():
            _sync_tree(entry)
        else:
            sync_file(entry)
    sync_directory(directory)


def _remove(path: Path) -> None:
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", path)
    # A rename is atomic and a recursive delete is not: half a checkpoint must not keep the name of a complete one.
    doomed = path.with_name(f"{_temporary(path).name}-old")
    path.rename(doomed)
    if doomed.is_symlink():
        doomed.unlink()
    else:
        shutil.rmtree(doomed)


@contextmanager
def _explained(path: Path, needed: int) -> Iterator[None]:
    """Convert an `OSError` into a message for the user: the path, the bytes needed and the bytes free."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path}: could not be written ({error.strerror or error}); "
            f"about {needed:,} bytes are needed and {_free(path)} are free"
        ) from error


def _free(path: Path) -> str:
    for parent in path.parents:
        try:
            return f"{shutil.disk_usage(parent).free:,}"
        except OSError:
            continue
    return "an unknown number"
