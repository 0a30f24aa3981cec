"""Checkpoints that only an interruption asked for: kept until training has passed them, so no schedule gains a step.

A run that is interrupted at step 38 of `0-60:20` saves step 38. After the resume, step 38 is deleted as soon as step 40
is complete on disk, unless the schedule of the resumed run contains 38 or somebody asked for the step.
"""

import logging
from collections.abc import Callable, Collection
from pathlib import Path

from emtoolkit.artifacts.publication import Publication
from emtoolkit.artifacts.publish import WandbPublisher
from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.listing import CheckpointInfo, list_checkpoints
from emtoolkit.checkpoints.publications import Publications, add_saved_for
from emtoolkit.errors import CheckpointError
from emtoolkit.storage.atomic import remove_directory

logger = logging.getLogger(__name__)


class InterruptionSaves:
    """The checkpoints in a locked directory that only interruptions asked for.

    `on_removed` is called with each step that is removed, all of which are in `removed`.

    `scheduled` are the steps of the schedule that is trained now: those that are saved already stay.
    """

    def __init__(self, directory: Path, found: Collection[CheckpointInfo], scheduled: Collection[int]) -> None:
        self.on_removed: Callable[[int], None] = lambda step: None
        self.removed: list[int] = []
        # The steps that a changed schedule keeps.
        self.kept = sorted(i.step for i in found if i.saved_for == "interruption" and i.step in scheduled)
        self._directory = directory
        self._steps = {info.step for info in found if info.saved_for == "interruption"} - set(self.kept)
        for step in self.kept:
            add_saved_for(directory, step, "schedule")
        self.passed_by(max((i.step for i in found if i.complete and i.saved_for != "interruption"), default=0))

    def publish_to(self, publisher: WandbPublisher) -> None:
        """Let W&B know which steps the schedule keeps and which are removed, from now on too."""
        self.on_removed = publisher.withdraw
        for step in self.removed:
            publisher.withdraw(step)
        recorded = Publications.read(self._directory) if self.kept else Publications()
        for info in list_checkpoints(self._directory) if self.kept else ():
            if info.step in self.kept and info.complete:
                publisher.publish(Publication.of(info, recorded))

    def add(self, step: int) -> None:
        """An interruption saves `step`."""
        self._steps.add(step)

    def passed_by(self, step: int) -> None:
        """Delete the checkpoints before `step`, which is complete on disk and was saved for another reason."""
        self._steps.discard(step)
        for passed in sorted(each for each in self._steps if each < step):
            self._steps.discard(passed)
            try:
                remove_directory(self._directory / checkpoint_name(passed))
            except (OSError, CheckpointError) as error:
                logger.warning(
                    "%s: the checkpoint of an interruption could not be deleted (%s)",
                    self._directory / checkpoint_name(passed),
                    error,
                )
                continue
            self.removed.append(passed)
            self.on_removed(passed)
