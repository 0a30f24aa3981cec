"""Copies beside a training that are made as late as possible, so that every change before they are waited for shows."""

import hashlib
import threading
from pathlib import Path

import pytest

from emtoolkit.saving import overlap
from emtoolkit.saving.overlapped_copy import OverlappedCopy


class LateCopies:
    """Lets the thread copy only when the training waits for the copy; `steps` are those that were copied beside it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[int] = []
        self._waited_for: dict[int, threading.Event] = {}
        begin, make, settle = OverlappedCopy.__init__, OverlappedCopy.make, OverlappedCopy.settle

        def begun(copy: OverlappedCopy, buffers: object, step: int, whole: object) -> None:
            self.steps.append(step)
            self._waited_for[id(copy)] = threading.Event()
            begin(copy, buffers, step, whole)  # type: ignore[arg-type]  # passed on

        def made(copy: OverlappedCopy) -> None:
            self._waited_for[id(copy)].wait()
            make(copy)

        def settled(copy: OverlappedCopy) -> None:
            self._waited_for[id(copy)].set()
            settle(copy)

        monkeypatch.setattr(overlap, "SMALLEST", 0)
        monkeypatch.setattr(OverlappedCopy, "__init__", begun)
        monkeypatch.setattr(OverlappedCopy, "make", made)
        monkeypatch.setattr(OverlappedCopy, "settle", settled)


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file of every checkpoint below `directory`, by relative path."""
    files = sorted(f for f in directory.rglob("checkpoint-*/*") if f.is_file())
    return {str(f.relative_to(directory)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
