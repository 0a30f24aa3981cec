"""Where the weights of a step are copied: in the training thread, or in the disk thread beside the next step."""

import logging
from typing import Any

import torch

from emtoolkit.saving.live_tensors import bytes_of
from emtoolkit.saving.model_state import ModelState
from emtoolkit.saving.overlap_conditions import callbacks_of, reason_for_copies_in_training
from emtoolkit.saving.overlapped_copy import OverlappedCopy
from emtoolkit.saving.snapshot import Snapshot, SnapshotBuffers
from emtoolkit.saving.strategy import SavingSetup, TrainerEvent
from emtoolkit.saving.whole_step import WholeStep
from emtoolkit.saving.writer import CheckpointContents

logger = logging.getLogger(__name__)

# The training thread copies weights of fewer bytes itself: handing 0.5 to 0.8 MB to another thread takes it as long.
SMALLEST = 1024 * 1024


class Copying:
    """Copies the weights of each saved step of one training, beside it where nothing else may change them.

    The first save is copied in the training thread, and compared with the weights at the next update: a model whose
    forward pass changes its own weights is never copied beside its training.
    """

    def __init__(self, setup: SavingSetup, state: ModelState, buffers: SnapshotBuffers, whole: WholeStep) -> None:
        self._setup = setup
        self._state = state
        self._buffers = buffers
        self._whole = whole
        self._finite = setup.options.on_nan == "stop"
        self._bytes = bytes_of(state.tensors.values())
        self._is_off = not setup.options.overlap
        self._compared = False
        self._rehearsal: Snapshot | None = None
        self._pending: OverlappedCopy | None = None
        self._trainer: Any = None
        # The callbacks that were looked at; others may be added in the middle of a training.
        self._seen: list[Any] | None = None

    def contents(self, step: int, event: TrainerEvent | None) -> CheckpointContents:
        """The weights of `step`; an `event` says that the copy may be made beside the training that follows it."""
        self.finish()
        if event is not None and self._may_overlap(event):
            copy = self._pending = OverlappedCopy(self._buffers, step, self._whole)
            return CheckpointContents.of_copy(copy, copy.release, finite=self._finite)
        snapshot = self._buffers.take(step)
        if not self._is_off and not self._compared:
            self._rehearsal = snapshot
        return CheckpointContents.of_copy(snapshot, lambda: self._buffers.release(snapshot), finite=self._finite)

    def before_update(self) -> None:
        """The optimizer begins to change the weights: wait for the copy that is being made."""
        self.finish()
        rehearsal, self._rehearsal = self._rehearsal, None
        if rehearsal is not None:
            self._compared = True
            if not self._whole.is_unchanged() or not _is_still_live(rehearsal):
                self._turn_off("the forward or the backward pass changes the weights")

    def finish(self) -> None:
        """Finish the copy that is being made, before something may change the weights."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        pending.settle()
        if pending.failure is not None:
            # The checkpoint is right; what fails is a fault to be reported, and costs time at each save.
            logger.warning(
                "the copy of step %d beside the training failed (%s: %s), and so the training thread made it",
                pending.step,
                type(pending.failure).__name__,
                pending.failure,
            )
            self._turn_off("a copy beside the training failed")
        if pending.problem is not None or pending.moved:
            self._turn_off("the weights get other memory or other values between two updates")

    def _may_overlap(self, event: TrainerEvent) -> bool:
        if self._is_off or not self._compared or self._bytes < SMALLEST:
            return False
        # Code after the last step may load other weights.
        if event.control.should_training_stop or event.step >= event.state.max_steps:
            return False
        self._trainer = self._trainer or self._setup.trainer()
        callbacks = callbacks_of(self._trainer)
        if callbacks != self._seen:
            self._seen = callbacks
            if reason := reason_for_copies_in_training(self._trainer, self._setup.callback, event, self._state):
                self._turn_off(reason)
        return not self._is_off

    def _turn_off(self, reason: str) -> None:
        self._is_off = True
        logger.info("scheduled steps are copied in the training thread: %s", reason)


def _is_still_live(snapshot: Snapshot) -> bool:
    """Whether the tensors that were copied hold the bytes of the copies."""
    snapshot.wait()
    pairs = zip(snapshot.buffers.tensors, snapshot.live.tensors, strict=True)
    return all(torch.equal(_bytes_of(copy), _bytes_of(live.to("cpu"))) for copy, live in pairs)


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    # Bytes, because no value that is not a number equals itself.
    return tensor.contiguous().view(-1).view(torch.uint8)
