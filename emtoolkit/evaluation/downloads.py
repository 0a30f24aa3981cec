"""Checkpoints in their order, of which the next is downloaded while one is evaluated."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from emtoolkit.trajectory import Checkpoint

# The time that a download in the background has to end, which is that of the next part of a file.
_SECONDS_TO_STOP = 1.0


@contextmanager
def downloading_ahead(checkpoints: Iterable[Checkpoint]) -> Iterator[Iterator[Checkpoint]]:
    """The `checkpoints` in their order, each on this machine; while one is used, the next is downloaded.

    Leaving the context ends a download in the background, and a later one continues it.

    Raises:
        CheckpointError: when a checkpoint is reached whose download failed.
    """
    stop, running = Event(), list[Thread]()

    def in_order() -> Iterator[Checkpoint]:
        waiting = list(checkpoints)
        while waiting:
            checkpoint = waiting.pop(0)
            _ = checkpoint.manifest
            # One at a time: a download holds the lock of the directory.
            running[:] = [thread for next_one in waiting[:1] if (thread := next_one.start_download(stop))]
            yield checkpoint

    try:
        yield in_order()
    finally:
        stop.set()
        for thread in running:
            thread.join(_SECONDS_TO_STOP)
