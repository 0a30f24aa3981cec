"""Which steps are saved besides those that are known beforehand, as the saving session asks for it.

A measured step is copied as a saved one is. The disk thread measures the copy, and writes it or leaves it out; so
training waits for the copy only. Except for `is_measured`, a `StepChoice` is called in the disk thread, in the order of
the steps.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from emtoolkit.artifacts.publication import Publication
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.publications import Publications


class StepChoice(Protocol):
    """Chooses steps besides those that are known beforehand."""

    @property
    def thins(self) -> bool:
        """Whether a saved step may still be deleted, so that none is published yet."""

    def is_measured(self, step: int) -> bool:
        """Whether to copy `step`, so that it can be chosen; the training thread asks."""

    def chooses(self, step: int, tensors: Callable[[], Mapping[str, Tensor]]) -> bool:
        """Whether the step with these `tensors` is saved; each step is measured once, in ascending order."""

    def saved(self, step: int) -> tuple[int, ...]:
        """`step` is on disk: the steps that were deleted because of it."""

    def ended(self, step: int) -> tuple[int, ...]:
        """Training ended at `step`: the steps that were deleted because of it. None is deleted afterwards."""

    def write(self, directory: Path) -> None:
        """Write the state of this moment into the resume checkpoint `directory`."""


class KnownSteps:
    """The `StepChoice` of a schedule whose steps are known beforehand: none besides them."""

    thins = False

    def is_measured(self, step: int) -> bool:
        return False

    def chooses(self, step: int, tensors: Callable[[], Mapping[str, Tensor]]) -> bool:
        return False

    def saved(self, step: int) -> tuple[int, ...]:
        return ()

    def ended(self, step: int) -> tuple[int, ...]:
        return ()

    def write(self, directory: Path) -> None:
        pass


def withheld_publications(directory: Path, known: Mapping[int, Publication]) -> list[Publication]:
    """The publications of all checkpoints in `directory`, which were not published before training had ended.

    `known` are those of this process; earlier processes have recorded theirs.
    """
    recorded = Publications.read(directory)
    return [
        known.get(info.step) or Publication.of(info, recorded)
        for info in list_checkpoints(directory)
        if info.complete and info.source == "emtoolkit"
    ]
