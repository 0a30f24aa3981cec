"""Copies beside a training that are made as late as possible, so that every change before they are waited for shows."""

import hashlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.saving import overlap
from emtoolkit.saving.overlapped_copy import OverlappedCopy


class LateCopies:
    """Lets the disk thread copy only when training waits for the copy; `steps` are those that were copied beside it.

    With `busy` the disk thread comes to a copy after the training has settled it.
    """

    # For a training of five steps. A copy that nothing waits for stops the disk thread, and so the training, for good.
    _seconds = 20.0

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, busy: bool = False) -> None:
        self.steps: list[int] = []
        self._copies: list[OverlappedCopy] = []
        begin, make, settle = OverlappedCopy.__init__, OverlappedCopy.make, OverlappedCopy.settle
        waited_for: dict[OverlappedCopy, threading.Event] = {}
        made: dict[OverlappedCopy, threading.Event] = {}

        def begin_noted(copy: OverlappedCopy, buffers: object, step: int, whole: object) -> None:
            self.steps.append(step)
            self._copies.append(copy)
            waited_for[copy], made[copy] = threading.Event(), threading.Event()
            begin(copy, buffers, step, whole)  # type: ignore[arg-type]  # passed on

        def make_late(copy: OverlappedCopy) -> None:
            waited_for[copy].wait()
            make(copy)
            made[copy].set()

        def settle_after(copy: OverlappedCopy) -> None:
            if busy:
                settle(copy)
            waited_for[copy].set()
            made[copy].wait(self._seconds)
            settle(copy)

        monkeypatch.setattr(overlap, "SMALLEST", 0)
        monkeypatch.setattr(OverlappedCopy, "__init__", begin_noted)
        monkeypatch.setattr(OverlappedCopy, "make", make_late)
        monkeypatch.setattr(OverlappedCopy, "settle", settle_after)

    @contextmanager
    def bounded(self) -> Iterator["LateCopies"]:
        """Fail a training that does not end in time, in the main thread."""

        def expire(*_: Any) -> None:
            for copy in self._copies:
                copy.settle()
            # A test that hangs after another has the same cause.
            LateCopies._seconds = 2.0
            raise TimeoutError("the training does not go on: it waits for a copy that it never let the thread make")

        before = signal.signal(signal.SIGALRM, expire)
        signal.setitimer(signal.ITIMER_REAL, LateCopies._seconds)
        try:
            yield self
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file of every checkpoint below `directory`, by relative path."""
    files = sorted(f for f in directory.rglob("checkpoint-*/*") if f.is_file())
    return {str(f.relative_to(directory)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
