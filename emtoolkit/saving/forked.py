"""Work in a forked process: it sees the memory of this one, and nothing that it does there is left here."""

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# In seconds without a byte of the answer.
_TIMEOUT = 20


def in_fork(work: Callable[[], bytes]) -> bytes | None:
    """The result of `work` in a forked process; None if it fails, takes too long, or the system cannot fork.

    The random generators, the objects and the open files of this process are as they were afterwards.
    """
    if not hasattr(os, "fork"):
        return None
    with _file_positions_kept():
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _answer(work, reading, writing)
        os.close(writing)
        try:
            return _read_all(reading)
        finally:
            os.close(reading)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _answer(work: Callable[[], bytes], reading: int, writing: int) -> None:
    """In the forked process: write the result of `work` and end, without the cleanup that belongs to the parent."""
    try:
        os.close(reading)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        # OpenMP's threads do not exist here.
        torch.set_num_threads(1)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(work())
    finally:
        os._exit(0)


def _read_all(pipe: int) -> bytes | None:
    """Everything that comes through `pipe` until its other end is closed; None if that is nothing."""
    parts: list[bytes] = []
    while select.select([pipe], [], [], _TIMEOUT)[0]:
        part = os.read(pipe, 2**16)
        if not part:
            return b"".join(parts) or None
        parts.append(part)
    return None


@contextmanager
def _file_positions_kept() -> Iterator[None]:
    """Restore the positions of open files, which a forked process shares."""
    positions = {}
    descriptors = Path("/dev/fd")
    for name in os.listdir(descriptors) if descriptors.is_dir() else ():
        try:
            positions[int(name)] = os.lseek(int(name), 0, os.SEEK_CUR)
        except OSError:  # a pipe, a socket, or closed since
            continue
    try:
        yield
    finally:
        for descriptor, position in positions.items():
            try:
                if os.lseek(descriptor, 0, os.SEEK_CUR) != position:
                    os.lseek(descriptor, position, os.SEEK_SET)
            except OSError:
                continue
