"""From a snapshot to a durable `checkpoint-N/`, in a background thread, in the order the steps came."""

import logging
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emtoolkit.checkpoints.durable import write_directory
from emtoolkit.checkpoints.manifest import MANIFEST, Identity, Manifest
from emtoolkit.checkpoints.snapshot import ModelState, Snapshot, SnapshotBuffers
from emtoolkit.errors import CheckpointError

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

    def __init__(self, on_error: OnError) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="emtoolkit-disk")
        self._pending: list[Future[None]] = []
        self._on_error = on_error
        self.failures: list[Exception] = []
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

    def drain(self) -> None:
        """Wait for every job, then `check()`."""
        for job in list(self._pending):
            job.exception()
        self.check()

    def close(self) -> None:
        """Finish the jobs and end the thread."""
        self._executor.shutdown(wait=True)


class CheckpointWriter:
    """Saves steps of one trajectory into `directory`: `save` copies and returns, the rest is in the background."""

    def __init__(
        self,
        directory: Path,
        state: ModelState,
        identity: Identity,
        total_steps: int,
        disk: DiskThread,
        max_in_flight: int = 2,
    ) -> None:
        self._directory = directory
        self._state = state
        self._identity = identity
        self._total_steps = total_steps
        self._disk = disk
        self.buffers = SnapshotBuffers(state, max_in_flight)

    def save(self, step: int, on_durable: Callable[[Saved], None]) -> None:
        """Copy the model's state as that of `step`; the rest, and then `on_durable`, happen in the background."""
        snapshot = self.buffers.take(step)
        self._disk.submit(lambda: self._write_and_release(snapshot, on_durable))

    def _write_and_release(self, snapshot: Snapshot, on_durable: Callable[[Saved], None]) -> None:
        try:
            snapshot.ready()
            saved = self._write(snapshot)
        finally:
            self.buffers.release(snapshot)
        on_durable(saved)

    def _write(self, snapshot: Snapshot) -> Saved:
        path = self._directory / f"checkpoint-{snapshot.step}"
        earlier = _complete_manifest(path)
        if earlier is None:
            write_directory(path, lambda d: self._fill(d, snapshot), snapshot.bytes)
            already_there = False
        else:
            with tempfile.TemporaryDirectory(prefix=".tmp-", dir=self._directory) as scratch:
                now = self._fill(Path(scratch), snapshot)
            if now != earlier:
                changed = sorted(n for n in now.files if now.files[n] != earlier.files.get(n)) or [MANIFEST]
                raise CheckpointError(
                    f"{path}: step {snapshot.step} came out differently than when it was saved "
                    f"({', '.join(changed)} differ): the two runs are not on one trajectory"
                )
            already_there = True
        size = sum(file.stat().st_size for file in path.iterdir())
        return Saved(snapshot.step, path, size, already_there)

    def _fill(self, directory: Path, snapshot: Snapshot) -> Manifest:
        self._state.write(directory, snapshot.tensors)
        return Manifest.seal(directory, self._identity, snapshot.step, self._total_steps)


def _complete_manifest(path: Path) -> Manifest | None:
    """The manifest of `path` if it holds a checkpoint whose files are all there, else None."""
    if not (path / MANIFEST).exists():
        return None
    manifest = Manifest.read(path)
    return None if manifest.problems(path, rehash=False) else manifest
