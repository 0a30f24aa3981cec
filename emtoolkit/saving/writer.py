"""From a snapshot to a durable `checkpoint-N/`, in a background thread, in the order the steps came."""

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.manifest import MANIFEST, Manifest
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.snapshot import ModelState, SnapshotBuffers
from emtoolkit.storage.atomic import TEMPORARY, write_directory
from emtoolkit.storage.thread_priority import give_way

logger = logging.getLogger(__name__)

OnError = Literal["raise", "warn"]


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that is complete on disk. `already_there` if an earlier run had saved the very same."""

    step: int
    path: Path
    bytes: int
    already_there: bool


class DiskThread:
    """One background thread that runs jobs in order and never loses a failure of theirs.

    At interpreter exit the jobs that were handed in are finished first: that is what the executor of the standard
    library does, and why a script that dies of something else keeps its last checkpoint.
    """

    def __init__(self, on_error: OnError, niceness: int = 0) -> None:
        self._executor = ThreadPoolExecutor(1, "emtoolkit-disk", initializer=give_way, initargs=(niceness,))
        self._pending: list[Future[None]] = []
        self._on_error = on_error
        self.failures: list[Exception] = []
        self.waited_seconds = 0.0
        # The executor starts its thread with the first job; this one is it, so that no save waits for the start.
        self.submit(lambda: None)

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` after those before it."""
        self._pending.append(self._executor.submit(job))

    def check(self) -> None:
        """Raise the first failure of a finished job, with its cause, or log it where `on_error` is `warn`."""
        while self._pending and self._pending[0].done():
            error = self._pending.pop(0).exception()
            if not isinstance(error, Exception):
                continue
            self.failures.append(error)
            if self._on_error == "raise":
                raise error
            logger.warning("a checkpoint could not be saved: %s", error)

    def wait_for_fewer_than(self, jobs: int) -> None:
        """Wait until fewer than `jobs` are unfinished."""
        started = time.perf_counter()
        unfinished = [job for job in self._pending if not job.done()]
        for job in unfinished[: max(0, len(unfinished) - jobs + 1)]:
            job.exception()
        self.waited_seconds += time.perf_counter() - started

    def drain(self) -> None:
        """Wait for every job, then `check()`."""
        for job in list(self._pending):
            job.exception()
        self.check()

    def close(self) -> None:
        """Finish the jobs and end the thread."""
        self._executor.shutdown(wait=True)


@dataclass(frozen=True, slots=True)
class CheckpointContents:
    """What a checkpoint will hold: `fill` writes it, of about `bytes`, and `release` is called when it is written."""

    bytes: int
    fill: Callable[[Path], None]
    release: Callable[[], None] = lambda: None

    @classmethod
    def of_copy(cls, state: ModelState, buffers: SnapshotBuffers, step: int) -> "CheckpointContents":
        """The model as it is, copied into `buffers` by the calling thread."""
        snapshot = buffers.take(step)

        def fill(directory: Path) -> None:
            snapshot.ready()
            state.write(directory, snapshot.tensors)

        return cls(snapshot.bytes, fill, lambda: buffers.release(snapshot))

    @classmethod
    def of_tensors(cls, state: ModelState, tensors: Mapping[str, Tensor]) -> "CheckpointContents":
        """`tensors`, which belong to nobody else."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        return cls(size, lambda directory: state.write(directory, tensors))

    @classmethod
    def of_files(cls, state: ModelState, source: Path) -> "CheckpointContents":
        """What the Trainer has saved into `source`."""
        return cls(0, lambda directory: state.adopt(source, directory))


class CheckpointWriter:
    """Saves steps of one trajectory into `directory`, in the background."""

    def __init__(self, directory: Path, identity: Identity, total_steps: int, disk: DiskThread) -> None:
        self._directory = directory
        self._identity = identity
        self._total_steps = total_steps
        self._disk = disk

    def save(
        self, step: int, contents: CheckpointContents, before: Callable[[], None], on_durable: Callable[[Saved], None]
    ) -> None:
        """Call `before`, write `contents` as the checkpoint of `step`, call `on_durable`, all in the background."""
        self._disk.submit(lambda: self._write_and_release(step, contents, before, on_durable))

    def _write_and_release(
        self, step: int, contents: CheckpointContents, before: Callable[[], None], on_durable: Callable[[Saved], None]
    ) -> None:
        try:
            before()
            saved = self._write(step, contents)
        finally:
            contents.release()
        on_durable(saved)

    def _write(self, step: int, contents: CheckpointContents) -> Saved:
        path = self._directory / checkpoint_name(step)

        def fill(directory: Path) -> Manifest:
            contents.fill(directory)
            return Manifest.seal(directory, self._identity, step, self._total_steps)

        earlier = _complete_manifest(path)
        if earlier is None:
            write_directory(path, fill, contents.bytes)
            already_there = False
        else:
            with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=self._directory) as scratch:
                now = fill(Path(scratch))
            if now != earlier:
                changed = sorted(n for n in now.files if now.files[n] != earlier.files.get(n)) or [MANIFEST]
                raise CheckpointError(
                    f"{path}: step {step} came out differently than when it was saved "
                    f"({', '.join(changed)} differ): the two runs are not on one trajectory"
                )
            already_there = True
        size = sum(file.stat().st_size for file in path.iterdir())
        return Saved(step, path, size, already_there)


def _complete_manifest(path: Path) -> Manifest | None:
    """The manifest of `path` if it holds a checkpoint whose files are all there, else None."""
    if not (path / MANIFEST).exists():
        return None
    manifest = Manifest.read(path)
    return None if manifest.problems(path, rehash=False) else manifest
