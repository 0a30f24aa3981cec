"""From a snapshot to a complete `checkpoint-N/`, in a background thread, in the order of the steps."""

import atexit
import logging
import queue
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.manifest import MANIFEST, Manifest, NewerFormatError, TrajectorySeal
from emtoolkit.errors import CheckpointError, DivergedError
from emtoolkit.saving.finite_weights import check_finite
from emtoolkit.saving.live_tensors import bytes_of
from emtoolkit.saving.model_state import ModelState
from emtoolkit.saving.output_directory import set_files_aside
from emtoolkit.saving.overlapped_copy import OverlappedCopy
from emtoolkit.saving.recomputed import Recomputed, compare_recomputed
from emtoolkit.saving.snapshot import Snapshot
from emtoolkit.schedules.save_options import OnError
from emtoolkit.storage.atomic import TEMPORARY, write_directory
from emtoolkit.storage.thread_priority import give_way

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that is complete on disk.

    `already_there` if an earlier run had saved it; `recomputed` is what this run computed for its step, then. Otherwise
    `manifest` is the one that this run wrote.
    """

    step: int
    path: Path
    bytes: int
    already_there: bool
    recomputed: Recomputed | None = None
    manifest: Manifest | None = None


@dataclass(slots=True, eq=False)
class _Job:
    run: Callable[[], None]
    error: BaseException | None = None
    is_done: bool = False


class DiskThread:
    """One background thread that runs jobs in order and keeps every failure.

    At interpreter exit the submitted jobs are finished, so a script that dies of another error keeps its last
    checkpoint. An executor of the standard library would do the same, and takes ten times as long to take a job.
    """

    def __init__(self, on_error: OnError, niceness: int = 0) -> None:
        self._jobs: deque[_Job] = deque()
        self._pending: list[_Job] = []
        self._on_error = on_error
        self._is_closed = False
        # Only a thread that waits is woken, which takes longer than all else about a job.
        self._is_waiting = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._finished = threading.Condition()
        self.failures: list[Exception] = []
        self.waited_seconds = 0.0
        # A thread that is no daemon would keep the interpreter from coming to its exit functions.
        self._thread = threading.Thread(target=self._work, args=(niceness,), name="emtoolkit-disk", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` after the jobs submitted before it."""
        if self._is_closed:
            raise RuntimeError("the disk thread has ended")
        submitted = _Job(job)
        self._pending.append(submitted)
        self._jobs.append(submitted)
        if self._is_waiting:
            self._wake.put(None)

    def _work(self, niceness: int) -> None:
        give_way(niceness)
        while True:
            while self._jobs:
                self._run(self._jobs.popleft())
            # In this order: whoever adds a job after the look sees that the thread waits, and wakes it.
            self._is_waiting = True
            if not self._jobs:
                if self._is_closed:
                    return
                self._wake.get()
            self._is_waiting = False

    def _run(self, job: _Job) -> None:
        try:
            job.run()
        except BaseException as error:  # noqa: BLE001  # `check` raises it in the thread that trains
            job.error = error
        # A job holds the copy of a step.
        job.run = _nothing
        with self._finished:
            job.is_done = True
            self._finished.notify_all()

    def _wait_for(self, jobs: Sequence[_Job]) -> None:
        with self._finished:
            self._finished.wait_for(lambda: all(job.is_done for job in jobs))

    def check(self) -> None:
        """Raise the first failure of a finished job, with its cause; log it instead where `on_error` is `warn`."""
        while self._pending and self._pending[0].is_done:
            error = self._pending.pop(0).error
            if not isinstance(error, Exception):
                continue
            self.failures.append(error)
            if self._on_error == "raise" or isinstance(error, DivergedError):
                raise error
            logger.warning("a checkpoint could not be saved: %s", error)

    def wait_for_fewer_than(self, jobs: int) -> None:
        """Wait until fewer than `jobs` are unfinished."""
        started = time.perf_counter()
        unfinished = [job for job in self._pending if not job.is_done]
        self._wait_for(unfinished[: max(0, len(unfinished) - jobs + 1)])
        self.waited_seconds += time.perf_counter() - started

    def drain(self) -> None:
        """Wait for every job, then `check()`."""
        self._wait_for(list(self._pending))
        self.check()

    def close(self) -> None:
        """Finish the jobs and end the thread."""
        self._is_closed = True
        self._wake.put(None)
        self._thread.join()
        atexit.unregister(self.close)


def _nothing() -> None:
    """Do nothing, in place of a job that has run, so that its tensors are freed."""


@dataclass(frozen=True, slots=True)
class CheckpointContents:
    """The contents of one checkpoint: `fill` writes about `bytes` into a directory, and `release` is called after.

    `tensors` waits for the copies, and returns them; it has none where the Trainer writes the files.
    """

    bytes: int
    fill: Callable[[Path], None]
    release: Callable[[], None] = lambda: None
    tensors: Callable[[], Mapping[str, Tensor]] = dict

    @classmethod
    def of_copy(cls, copy: Snapshot | OverlappedCopy, release: Callable[[], None], *, finite: bool) -> Self:
        """The weights in `copy`, whose memory `release` gives back.

        If they must be `finite`, a `DivergedError` takes the place of weights that are not.
        """

        def fill(directory: Path) -> None:
            snapshot = copy.wait()
            if finite:
                check_finite(snapshot.step, snapshot.tensors)
            snapshot.write(directory, snapshot.tensors)

        return cls(copy.bytes, fill, release, lambda: copy.wait().tensors)

    @classmethod
    def of_tensors(cls, state: ModelState, tensors: Mapping[str, Tensor]) -> "CheckpointContents":
        """`tensors`, which nothing else refers to."""
        size = bytes_of(tensors.values())
        write = state.writer()
        return cls(size, lambda directory: write(directory, tensors))

    @classmethod
    def of_files(cls, state: ModelState, source: Path) -> "CheckpointContents":
        """The files that the Trainer saved into `source`."""
        return cls(0, lambda directory: state.adopt(source, directory))


class CheckpointWriter:
    """Writes checkpoints of one trajectory into `directory`, in the background."""

    def __init__(self, directory: Path, seal: TrajectorySeal, disk: DiskThread) -> None:
        self._directory = directory
        self._seal = seal
        self._disk = disk

    def save(
        self, step: int, contents: CheckpointContents, before: Callable[[], bool], on_saved: Callable[[Saved], None]
    ) -> None:
        """Call `before`, write `contents` as the checkpoint of `step`, call `on_saved`, all in the background.

        If `before` returns False, the step is not saved.
        """
        self._disk.submit(lambda: self._write_and_release(step, contents, before, on_saved))

    def _write_and_release(
        self, step: int, contents: CheckpointContents, before: Callable[[], bool], on_saved: Callable[[Saved], None]
    ) -> None:
        try:
            # First, because the next update waits for a copy that this thread makes beside the training.
            contents.tensors()
            saved = self._write(step, contents) if before() else None
        finally:
            contents.release()
        if saved is not None:
            on_saved(saved)

    def _write(self, step: int, contents: CheckpointContents) -> Saved:
        path = self._directory / checkpoint_name(step)

        def fill(directory: Path) -> Manifest:
            contents.fill(directory)
            return self._seal.seal(directory, step)

        def replace(directory: Path) -> Manifest:
            manifest = fill(directory)
            keep_other_files(path, manifest)
            return manifest

        written, recomputed = None, None
        earlier = _intact_manifest(path, step)
        if earlier is None:
            written = write_directory(path, replace, contents.bytes)
        else:
            with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=self._directory) as scratch:
                again = Path(scratch)
                recomputed = compare_recomputed(path, earlier, again, fill(again))
        size = sum(file.stat().st_size for file in path.iterdir())
        return Saved(step, path, size, earlier is not None, recomputed, written)


def keep_other_files(damaged: Path, manifest: Manifest) -> None:
    """Move files that emtoolkit did not write out of the checkpoint `damaged`, which a new one replaces."""
    if damaged.is_dir():
        written = {MANIFEST, *(name.partition("/")[0] for name in manifest.files)}
        set_files_aside(damaged, sorted(entry.name for entry in damaged.iterdir() if entry.name not in written))


def _intact_manifest(path: Path, step: int) -> Manifest | None:
    """The manifest of `path` if every file of the checkpoint of `step` has the digest in it, otherwise None.

    Raises:
        NewerFormatError: a newer version of emtoolkit saved the checkpoint.
    """
    try:
        manifest = Manifest.read(path)
    except NewerFormatError:
        raise
    except CheckpointError:
        return None
    return None if manifest.step != step or manifest.problems(path, rehash=True) else manifest
