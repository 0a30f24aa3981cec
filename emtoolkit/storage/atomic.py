"""Files and directories that are there whole or not at all, also after the power went: write, fsync, rename, fsync."""

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from emtoolkit.errors import CheckpointError

TEMPORARY = ".tmp-"


def write_file(path: Path, content: bytes) -> None:
    """Replace `path` by a file with `content`; a reader sees the old one or the new one, never a part."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    with _explained(path, len(content)):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_directory(path.parent)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def write_directory(path: Path, fill: Callable[[Path], object], expected_bytes: int) -> None:
    """Make directory `path` with the files that `fill` puts into the empty directory it is given.

    The directory has its name only when every file in it is on the disk. A directory that is already there under
    that name is replaced, and is whole until the very moment of that. Its parent must be there: where a disk was
    unmounted, making one would put the checkpoints onto another.

    Raises:
        CheckpointError: the disk is full, read-only or gone; nothing has the name then, or what had it still has.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    with _explained(path, expected_bytes):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            fill(temporary)
            _make_durable(temporary)
            if path.exists():
                _remove(path)
            temporary.rename(path)
            sync_directory(path.parent)
        except Exception:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def remove_temporaries(directories: Iterable[Path]) -> None:
    """Delete what interrupted writes left in `directories`; to be called at a start, when nobody writes there."""
    for directory in directories:
        for left_over in directory.glob(f"{TEMPORARY}*"):
            if left_over.is_dir():
                shutil.rmtree(left_over)
            else:
                left_over.unlink()


def remove_directory(path: Path) -> None:
    """Delete directory `path` so that no part of it is ever seen under its name."""
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


# A directory's names are durable only after an fsync of the directory itself; opening it read-only serves for that.
sync_directory = sync_file


def _make_durable(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir():
            _make_durable(entry)
        else:
            sync_file(entry)
    sync_directory(directory)


def _remove(path: Path) -> None:
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", path)
    # A rename is atomic and a recursive delete is not: half a checkpoint must not keep the name of a whole one.
    doomed = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}-old")
    path.rename(doomed)
    shutil.rmtree(doomed)


@contextmanager
def _explained(path: Path, needed: int) -> Iterator[None]:
    """Turn an OSError into the sentence that a user needs: the path, the bytes needed and the bytes free."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path}: it could not be written ({error.strerror or error}); "
            f"about {needed:,} bytes are needed and {_free(path)} are free"
        ) from error


def _free(path: Path) -> str:
    for parent in path.parents:
        try:
            return f"{shutil.disk_usage(parent).free:,}"
        except OSError:
            continue
    return "an unknown number"
