"""Where a training starts: at step 0, from a resume checkpoint, or not at all because the run is complete."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emtoolkit.errors import CheckpointError
from emtoolkit.saving.output_directory import OutputDirectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """`checkpoint` is the resume checkpoint to continue from, None for step 0. A `complete` run needs no training."""

    checkpoint: Path | None = None
    complete: bool = False


def find_resume_point(directory: OutputDirectory, steps: Sequence[int], *, resume: bool) -> ResumePoint:
    """Where a run that saves `steps` to `directory` starts: with `resume` at the first step that is missing.

    Raises:
        CheckpointError: `directory` holds checkpoints of this run, and `resume` is false.
    """
    if not directory.holds_a_run:
        return ResumePoint()
    if not resume:
        count = len(directory.complete_steps)
        held = f"{count} checkpoints of this run" if count else "the beginning of this run"
        raise CheckpointError(
            f"{directory.path}: it holds {held}; pass --resume to continue it, or --output-dir to start another one"
        )
    missing = directory.first_missing(steps)
    if missing is None and directory.ended_at is not None:
        return ResumePoint(complete=True)
    checkpoint = directory.newest_resume_state(not_after=missing)
    if checkpoint is None:
        logger.warning(
            "%s: there is no resume checkpoint before step %s, so training starts again at step 0; "
            "existing checkpoints are compared, not written again",
            directory.path,
            missing,
        )
        return ResumePoint()
    logger.info("resuming from %s", checkpoint)
    return ResumePoint(checkpoint)
