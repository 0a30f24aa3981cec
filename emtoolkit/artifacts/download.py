"""Parallel download of checkpoints into one directory, which then is a local trajectory."""

import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from emtoolkit.artifacts.checkpoint_download import CheckpointReceiver, is_present
from emtoolkit.artifacts.collection import Collection, RemoteCheckpoint
from emtoolkit.artifacts.file_transfer import RetryPolicy, Transfer
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.checkpoints.remote import Cancelled, Downloaded, RefusedError
from emtoolkit.progress import Progress, silent
from emtoolkit.storage.free_space import check_room
from emtoolkit.storage.lock import lock_directory

# Enough connections to fill a line; W&B's client opens more for one artifact.
_WORKERS = 8
# The time limit for another process that downloads into the same directory, in seconds.
_LOCK_SECONDS = 600.0
_SECONDS_BETWEEN_REPORTS = 0.2
_ADVICE = "choose fewer steps or another disk"
# The time that threads have to end after an interruption. They are daemons, so a thread that hangs delays nobody.
_SECONDS_TO_STOP = 1.0


def download(
    collection: Collection,
    checkpoints: Sequence[RemoteCheckpoint],
    directory: Path,
    *,
    rehash: bool = False,
    wait: bool = False,
    retry: RetryPolicy | None = None,
    progress: Progress = silent,
) -> Downloaded:
    """Download `checkpoints` into `directory`, continuing an interrupted download.

    Checkpoints that are present are not downloaded again; with `rehash` they are hashed first, and damaged files are
    replaced. With `wait` another process that writes to the directory is waited for.

    Raises:
        RefusedError: a checkpoint is unsafe or cannot be loaded; raised after all others have been downloaded.
        TransferError: the network or the server failed; the same call continues the download.
        CheckpointError: the directory holds another trajectory, another process is writing to it, or the disk is full.
    """
    lock = lock_directory(directory, timeout=_LOCK_SECONDS if wait else 0.0)
    try:
        publications = Publications.read(directory)
        present = {c.step for c in checkpoints if is_present(directory, c, publications, rehash=rehash)}
        missing = [checkpoint for checkpoint in checkpoints if checkpoint.step not in present]
        check_room(directory, sum(c.bytes for c in missing), f"{len(missing)} checkpoints", _ADVICE)
        receiver = CheckpointReceiver(directory, collection)
        pool = _DownloadPool(receiver, collection.api_key, retry or RetryPolicy())
        try:
            refused = pool.receive(missing, progress)
        finally:
            receiver.close()
    finally:
        lock.release()
    if refused:
        more = f"; {len(refused) - 1} more were refused" if len(refused) > 1 else ""
        downloaded = len(checkpoints) - len(refused)
        others = f"; the other {downloaded} checkpoints are in {directory}" if downloaded else ""
        raise RefusedError(f"{refused[min(refused)]}{more}{others}")
    return Downloaded(directory, tuple(c.step for c in missing), tuple(sorted(present)), pool.bytes)


def download_one(
    collection: Collection,
    checkpoint: RemoteCheckpoint,
    directory: Path,
    retry: RetryPolicy | None = None,
    stop: threading.Event | None = None,
) -> bool:
    """Download `checkpoint` into `directory` unless present; return whether it was downloaded, and so just hashed.

    Raises: as `download`, but waits for another process that is writing to the directory. `Cancelled` if `stop` is set.
    """
    if is_present(directory, checkpoint, Publications.read(directory)):
        return False
    lock = lock_directory(directory, timeout=_LOCK_SECONDS)
    try:
        if is_present(directory, checkpoint, Publications.read(directory)):
            return False
        check_room(directory, checkpoint.bytes, "the files of 1 checkpoint", _ADVICE)
        receiver = CheckpointReceiver(directory, collection)
        receiver.receive(checkpoint, Transfer(collection.api_key, retry or RetryPolicy(), stop))
        receiver.close()
    finally:
        lock.release()
    return True


class _DownloadPool:
    """Threads that download checkpoints, each over its own connection."""

    def __init__(self, receiver: CheckpointReceiver, api_key: str | None, retry: RetryPolicy) -> None:
        self._receiver = receiver
        self._api_key = api_key
        self._retry = retry
        self._stop = threading.Event()
        self._todo: queue.SimpleQueue[RemoteCheckpoint] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[RemoteCheckpoint, BaseException | None]] = queue.SimpleQueue()
        self._received = [0] * _WORKERS

    @property
    def bytes(self) -> int:
        """The number of bytes received over the network."""
        return sum(self._received)

    def receive(self, checkpoints: Sequence[RemoteCheckpoint], progress: Progress) -> dict[int, RefusedError]:
        """Download all `checkpoints`, and return the error of each refused checkpoint by its step.

        Raises:
            CheckpointError: the network, the server or the disk failed, which ends the downloads of the others, too.
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
        def count(received: int) -> None:
            self._received[number] += received

        transfer = Transfer(self._api_key, self._retry, self._stop, count)
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
            except Exception as error:  # noqa: BLE001 - raised by the waiting thread
                self._done.put((checkpoint, error))
