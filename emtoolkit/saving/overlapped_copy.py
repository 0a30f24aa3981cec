"""A copy of the weights of one step that a thread makes beside the next forward and backward pass.

The weights are only read until the next update, so the training thread waits for the copy in `on_pre_optimizer_step`
(CheckFreq, Mohan et al., FAST '21, section 4.2). On a GPU it waits until the copies are queued on a stream of their
own, and the stream of the optimizer waits until they have arrived.
"""

import queue
import threading
from collections.abc import Callable

from emtoolkit.errors import CheckpointError
from emtoolkit.saving.snapshot import Snapshot, SnapshotBuffers
from emtoolkit.saving.whole_step import WholeStep

# How often the reader of a copy looks whether the thread that trains is still alive, in seconds.
_LOOK_EVERY = 1.0


class OverlappedCopy:
    """The weights of `step`: `make` copies them in a thread, and `settle` ends that before anything changes them.

    Attributes:
        step: The step whose weights they are.
        bytes: The size of the weights.
        moved: Whether `settle` found that the weights had got other memory, and copied them itself.
        failure: What ended the copy beside the training, whereupon `settle` copied the weights; None as a rule.
        problem: Why the copy is not the weights of the step; None if it is, once settled.
    """

    def __init__(self, buffers: SnapshotBuffers, step: int, whole: WholeStep) -> None:
        self._buffers = buffers
        self._whole = whole
        self._begun = buffers.begin(step)
        self._copied: Snapshot | None = None
        # Locks that are held until the copy is made, and until it is settled; events take training thrice the time.
        self._making, self._settling = threading.Lock(), threading.Lock()
        self._making.acquire()
        self._settling.acquire()
        self._is_settled = False
        self._training = threading.current_thread()
        self.step, self.bytes = step, self._begun.bytes
        self.moved = False
        self.failure: Exception | None = None
        self.problem: Exception | None = CheckpointError(f"step {step}: training ended before its weights were copied")

    def make(self) -> None:
        """Copy the weights; called by another thread than the training's."""
        try:
            self._copied = self._buffers.fill_beside(self._begun)
        except Exception as error:  # noqa: BLE001  # `settle` copies again, and there an error reaches the training
            self.failure = error
        finally:
            self._making.release()

    def settle(self) -> None:
        """Wait for the copy; called by the training thread before something may change the weights."""
        if self._is_settled:
            return
        try:
            with self._making:
                self.problem = self._settle()
        finally:
            self._is_settled = True
            self._settling.release()

    def wait(self) -> Snapshot:
        """The finished copy; called by the thread that writes it.

        Raises:
            CheckpointError: something changed the weights while they were copied.
        """
        while not self._settling.acquire(timeout=_LOOK_EVERY):
            # The interpreter ends, or the training was left without an end; nothing changes the weights any more.
            if not self._training.is_alive():
                self.settle()
        self._settling.release()
        if self.problem is not None:
            raise self.problem
        return (self._copied or self._begun).wait()

    def release(self) -> None:
        """Give the memory back; the copy must not be read afterwards."""
        with self._making:
            pass
        self._buffers.release(self._begun)

    def _settle(self) -> Exception | None:
        if not self._whole.is_unchanged():
            return CheckpointError(
                f"step {self._begun.step}: its checkpoint is lost, because something changed the weights between two "
                "updates while they were copied beside the training; pass overlap=False to the callback, or set "
                "checkpointing.overlap to false"
            )
        if self._copied is None:
            # The weights moved since an earlier save, or the thread failed; here the error reaches the training.
            self._copied, self.moved = self._buffers.fill_again(self._begun), self.failure is None
        self._copied.hold_streams()
        return None


class CopyThread:
    """One thread that makes copies in order; it starts at once and ends with `close`."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="emtoolkit-copy", daemon=True)
        self._thread.start()

    def begin(self, copy: OverlappedCopy) -> None:
        """Make `copy` after those that were begun before it."""
        self._jobs.put(copy.make)

    def close(self) -> None:
        """End the thread after its last copy."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
