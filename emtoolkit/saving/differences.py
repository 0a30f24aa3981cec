"""The steps that a resumed run computed again with other weights than their checkpoints hold: recorded, and said."""

import logging
from pathlib import Path

from emtoolkit.checkpoints.publications import Difference, Publications, add_difference
from emtoolkit.saving.recomputed import LARGEST_NOISE
from emtoolkit.saving.writer import Saved
from emtoolkit.schedules.steps import elided

logger = logging.getLogger(__name__)


class RecomputedSteps:
    """The differences of one output directory: those of this run by step, and the largest that any run recorded."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._by_step: dict[int, Difference] = {}
        recorded = Publications.read(directory).differences
        self.largest = max((difference.largest for difference in recorded.values()), default=0.0)

    def __contains__(self, step: int) -> bool:
        """Whether this run computed `step` again, with other weights."""
        return step in self._by_step

    def note(self, saved: Saved) -> None:
        """Record other weights than the checkpoint holds, and say so at the first step."""
        if saved.recomputed is None:
            return
        difference = saved.recomputed.weights
        if difference is None:
            if saved.recomputed.other_files:
                names = ", ".join(saved.recomputed.other_files)
                logger.info("%s: %s would be written differently now; the weights are equal", saved.path, names)
            return
        add_difference(self._directory, saved.step, difference)
        self.largest = max(self.largest, difference.largest)
        if not self._by_step:
            logger.warning(
                "%s: computed again, step %d has other weights (%s); the checkpoint stays, and the trajectory is "
                "marked as resumed with differences%s",
                saved.path,
                saved.step,
                difference,
                _cause(difference),
            )
        self._by_step[saved.step] = difference

    def sum_up(self) -> None:
        """Name the worst of several differences."""
        if len(self._by_step) > 1:
            worst = max(self._by_step.values(), key=lambda difference: difference.largest)
            logger.warning(
                "%s: resumed with differences: %d steps were computed again with other weights (steps %s): %s%s",
                self._directory,
                len(self._by_step),
                elided(sorted(self._by_step), 100),
                worst,
                _cause(worst),
            )


def _cause(difference: Difference) -> str:
    """A hint on differences that kernels which are not deterministic cannot explain."""
    if difference.share is not None and difference.share <= LARGEST_NOISE:
        return ""
    return "; this is more than kernels differ from run to run: look for other code, data order or library versions"
