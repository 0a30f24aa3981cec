"""Where a training starts: at step 0, from a resume checkpoint, or not at all because the run is complete."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emtoolkit.checkpoints.layout import step_of
from emtoolkit.errors import CheckpointError
from emtoolkit.progress import Progress, silent
from emtoolkit.saving.adaptive_steps import why_not_continued
from emtoolkit.saving.output_directory import OutputDirectory
from emtoolkit.schedules.adaptive import AdaptiveTerm

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """`checkpoint` is the resume checkpoint to continue from, None for step 0. A `complete` run needs no training.

    `damaged` are the steps whose checkpoints are computed again, in the schedule or not.
    """

    checkpoint: Path | None = None
    complete: bool = False
    damaged: frozenset[int] = frozenset()

    @property
    def step(self) -> int:
        """The step of `checkpoint`; 0 without one."""
        return 0 if self.checkpoint is None else step_of(self.checkpoint.name) or 0


def find_resume_point(
    directory: OutputDirectory,
    steps: Sequence[int],
    adaptive: AdaptiveTerm | None = None,
    *,
    resume: bool,
    progress: Progress = silent,
) -> ResumePoint:
    """Where a run that saves `steps` to `directory` starts: with `resume` at the first step that is missing or damaged.

    Where `adaptive` chooses other steps during training, the run starts at step 0 unless an earlier run with the same
    term has ended, or its resume state says what was chosen before.

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
    _warn_of_damage(directory)
    if missing is None and directory.ended_at is not None and _was_saved_under(adaptive, directory):
        return ResumePoint(complete=True)
    damaged = frozenset(info.step for info in directory.to_repair)
    checkpoint = directory.newest_resume_state(not_after=missing, progress=progress)
    if checkpoint is None:
        logger.warning(
            "%s: there is no intact resume checkpoint%s, so training starts again at step 0; intact checkpoints are "
            "compared with the steps that are computed again, and stay",
            directory.path,
            "" if missing is None else f" at or before step {missing}",
        )
        return ResumePoint(damaged=damaged)
    if adaptive is not None and (problem := why_not_continued(checkpoint, adaptive)):
        logger.warning("%s; training starts again at step 0, and intact checkpoints stay", problem)
        return ResumePoint(damaged=damaged)
    logger.info("resuming from %s", checkpoint)
    return ResumePoint(checkpoint, damaged=damaged)


def _was_saved_under(adaptive: AdaptiveTerm | None, directory: OutputDirectory) -> bool:
    """Whether the run that ended in `directory` chose its steps as `adaptive` does; true for None."""
    record = directory.record
    return adaptive is None or (record is not None and str(adaptive) in record.schedule.split(","))


def _warn_of_damage(directory: OutputDirectory) -> None:
    if directory.record_problem is not None:
        logger.warning("%s; it is written again", directory.record_problem)
    for info in directory.to_repair:
        reached = directory.ended_at is None or info.step <= directory.ended_at
        then = "is computed again" if reached else "is after the end of training, and stays as it is"
        logger.warning("%s; step %d %s", info.problems[0], info.step, then)
