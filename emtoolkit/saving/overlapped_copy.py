"""A copy of the weights of one step that the disk thread makes beside the next forward and backward pass.

The weights are only read until the next update, so the training thread waits for the copy in `on_pre_optimizer_step`
(CheckFreq, Mohan et al., FAST '21, section 4.2). If the disk thread is still busy with an earlier step then, the
training thread makes the copy itself. On a GPU it waits until the copies are queued on a stream of their own, and the
stream of the optimizer waits until they have arrived.
"""

import threading

from emtoolkit.errors import CheckpointError
from emtoolkit.saving.snapshot import Snapshot, SnapshotBuffers
from emtoolkit.saving.whole_step import WholeStep

# How often the reader of a copy looks whether the thread that trains is still alive, in seconds.
_LOOK_EVERY = 1.0


class OverlappedCopy:
    """The weights of `step`: `make` copies them in a thread, and `settle` ends that before anything changes them.

    A copy is settled once it holds the weights of the step, or never will.

    Attributes:
        step: The step whose weights they are.
        bytes: The size of the weights.
        moved: Whether `make` found that the weights had got other memory, so that `settle` copies them.
        failure: What ended the copy beside the training, whereupon `settle` copies the weights; None as a rule.
        problem: Why the copy is not the weights of the step; None if it is, once settled.
    """

    def __init__(self, buffers: SnapshotBuffers, step: int, whole: WholeStep) -> None:
        self._buffers = buffers
        self._whole = whole
        self._begun = buffers.begin(step)
        self._copied: Snapshot | None = None
        # Locks that are held while the copy is made, and until it is settled; events take training thrice the time.
        self._making, self._settling = threading.Lock(), threading.Lock()
        self._settling.acquire()
        self._is_settled = False
        self._training = threading.current_thread()
        self.step, self.bytes = step, self._begun.bytes
        self.moved = False
        self.failure: Exception | None = None
        self.problem: Exception | None = None

    def make(self) -> None:
        """Copy the weights, unless `settle` has; called by another thread than the training's."""
        with self._making:
            if self._is_settled or self._copied is not None:
                return
            try:
                self._copied = self._buffers.fill_beside(self._begun)
            except Exception as error:  # noqa: BLE001  # `settle` copies again, and there an error reaches the training
                self.failure = error
                return
            self.moved = self._copied is None
            if self._copied is not None and self._copied.is_here:
                self._settle()

    def settle(self) -> None:
        """Wait for the copy, or make it; called by the training thread before something may change the weights."""
        with self._making:
            if not self._is_settled:
                self._settle()

    def wait(self) -> Snapshot:
        """The finished copy, made now if it was not made before; called by the thread that writes it.

        Raises:
            CheckpointError: something changed the weights while they were copied.
        """
        self.make()
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
        self._buffers.release(self._begun)

    def _settle(self) -> None:
        try:
            if self._copied is None:
                # Here an error reaches the training.
                self._copied = self._buffers.fill_again(self._begun)
            self._copied.hold_streams()
            self.problem = None if self._whole.is_unchanged() else self._changed()
        except BaseException:
            self.problem = CheckpointError(f"step {self.step}: training ended before its weights were copied")
            raise
        finally:
            self._is_settled = True
            self._settling.release()

    def _changed(self) -> CheckpointError:
        return CheckpointError(
            f"step {self.step}: its checkpoint is lost, because something changed the weights between two "
            "updates while they were copied beside the training; pass overlap=False to the callback, or set "
            "checkpointing.overlap to false"
        )
