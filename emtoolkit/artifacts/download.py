"""Many checkpoints at once into one directory, which then is a local trajectory; the cache is such a directory."""

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emtoolkit.artifacts.checkpoint_download import Receiver, is_present
from emtoolkit.artifacts.collection import Collection, RefusedError, RemoteCheckpoint
from emtoolkit.artifacts.file_transfer import Cancelled, RetryPolicy, Transfer
from emtoolkit.checkpoints.publications import Ledger
from emtoolkit.progress import Progress, silent
from emtoolkit.storage.free_space import check_room
from emtoolkit.storage.lock import lock_directory

# As many connections as W&B's own client opens for one artifact are not needed to fill a line.
_WORKERS = 8
# How long another process that downloads into the same cache is waited for, in seconds.
_PATIENCE_WITH_OTHERS = 600.0
_SECONDS_BETWEEN_REPORTS = 0.2
_ADVICE = "choose fewer steps or another disk"
# What a thread gets to end in after an interruption; it is a daemon, so that one that hangs keeps nobody waiting.
_SECONDS_TO_STOP = 1.0


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What a download did: the steps it fetched and those that were there, and the bytes that came over the network."""

    directory: Path
    fetched: tuple[int, ...]
    present: tuple[int, ...]
    bytes: int


def download(
    collection: Collection,
    checkpoints: Sequence[RemoteCheckpoint],
    directory: Path,
    *,
    rehash: bool = False,
    patience: RetryPolicy | None = None,
    progress: Progress = silent,
) -> Downloaded:
    """Make `directory` hold `checkpoints`; an interrupted download continues, and what is there is not fetched.

    With `rehash` what is there is hashed first, so that a file that was damaged there is fetched again.

    Raises:
        CheckpointError: something cannot be trusted, told when everything else has arrived; something does not arrive,
            and the same call goes on; the directory holds something else or another process writes to it; the disk
            has no room.
    """
    lock = lock_directory(directory)
    try:
        ledger = Ledger.read(directory)
        present = {c.step for c in checkpoints if is_present(directory, c, ledger, rehash=rehash)}
        missing = [checkpoint for checkpoint in checkpoints if checkpoint.step not in present]
        check_room(directory, sum(c.bytes for c in missing), f"{len(missing)} checkpoints", _ADVICE)
        receiver = Receiver(directory, collection)
        crew = _DownloadPool(receiver, collection.api_key, patience or RetryPolicy())
        try:
            refused = crew.receive(missing, progress)
        finally:
            receiver.close()
    finally:
        lock.release()
    if refused:
        more = f"; {len(refused) - 1} more were refused" if len(refused) > 1 else ""
        there = len(checkpoints) - len(refused)
        others = f"; the other {there} checkpoints are in {directory}" if there else ""
        raise RefusedError(f"{refused[min(refused)]}{more}{others}")
    return Downloaded(directory, tuple(c.step for c in missing), tuple(sorted(present)), crew.bytes)


def download_one(
    collection: Collection, checkpoint: RemoteCheckpoint, directory: Path, patience: RetryPolicy | None = None
) -> bool:
    """Make `directory` hold `checkpoint`; whether it was fetched, and so every byte of it just compared.

    Raises: as `download`, but another process that is writing to the directory is waited for.
    """
    if is_present(directory, checkpoint, Ledger.read(directory)):
        return False
    lock = lock_directory(directory, timeout=_PATIENCE_WITH_OTHERS)
    try:
        if is_present(directory, checkpoint, Ledger.read(directory)):
            return False
        check_room(directory, checkpoint.bytes, "the files of 1 checkpoint", _ADVICE)
        receiver = Receiver(directory, collection)
        receiver.receive(checkpoint, Transfer(collection.api_key, patience or RetryPolicy()))
        receiver.close()
    finally:
        lock.release()
    return True


class _DownloadPool:
    """Threads that receive checkpoints, each over a connection of its own."""

    def __init__(self, receiver: Receiver, api_key: str | None, patience: RetryPolicy) -> None:
        self._receiver = receiver
        self._api_key = api_key
        self._patience = patience
        self._stop = threading.Event()
        self._todo: queue.SimpleQueue[RemoteCheckpoint] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[RemoteCheckpoint, BaseException | None]] = queue.SimpleQueue()
        self._arrived = [0] * _WORKERS

    @property
    def bytes(self) -> int:
        """How many have come over the network."""
        return sum(self._arrived)

    def receive(self, checkpoints: Sequence[RemoteCheckpoint], progress: Progress) -> dict[int, RefusedError]:
        """Receive all; the ones that cannot be trusted are returned by step, and keep no other from arriving.

        Raises:
            CheckpointError: the network, the server or the disk fails, as it would for the others, too.
        """
        for checkpoint in checkpoints:
            self._todo.put(checkpoint)
        threads = [
            threading.Thread(target=self._work, args=(number,), name=f"emtoolkit-download-{number}", daemon=True)
            for number in range(min(_WORKERS, len(checkpoints)))
        ]
        try:
            for thread in threads:
                thread.start()
            return self._wait(checkpoints, progress)
        finally:
            self._stop.set()
            deadline = time.monotonic() + _SECONDS_TO_STOP
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _wait(self, checkpoints: Sequence[RemoteCheckpoint], progress: Progress) -> dict[int, RefusedError]:
        total = max(1, sum(checkpoint.bytes for checkpoint in checkpoints))
        refused: dict[int, RefusedError] = {}
        finished = 0
        while finished < len(checkpoints):
            progress(f"{finished} of {len(checkpoints)} checkpoints", min(self.bytes, total), total)
            try:
                checkpoint, error = self._done.get(timeout=_SECONDS_BETWEEN_REPORTS)
            except queue.Empty:
                continue
            finished += 1
            if isinstance(error, RefusedError):
                refused[checkpoint.step] = error
            elif error is not None:
                raise error
        return refused

    def _work(self, number: int) -> None:
        def arrived(count: int) -> None:
            self._arrived[number] += count

        transfer = Transfer(self._api_key, self._patience, self._stop, arrived)
        while not self._stop.is_set():
            try:
                checkpoint = self._todo.get_nowait()
            except queue.Empty:
                return
            try:
                self._receiver.receive(checkpoint, transfer)
                self._done.put((checkpoint, None))
            except Cancelled:
                return
            except Exception as error:  # noqa: BLE001 - the thread that waits raises it
                self._done.put((checkpoint, error))
