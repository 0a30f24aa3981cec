"""When the state for continuing is saved, and with which random state: the same answer in every process.

A resume goes on from between two steps: after the evaluation that belongs to the first, and with the random state
from which the second is trained. `Trainer` sets the generators after it has fetched that step's batches, or, where a
new epoch begins, before it orders them; so that is where they are looked at.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emtoolkit.saving.ranks import Ranks
from emtoolkit.saving.resume_state import random_state, restore_epoch_begin
from emtoolkit.saving.signals import Interrupts
from emtoolkit.schedules.resume_interval import ResumeInterval


class ResumeSaves:
    """The interval, the signals, and what an epoch began with, of one training at a time."""

    def __init__(self, every: ResumeInterval, clock: Callable[[], float]) -> None:
        # The signal for which training is to stop, 0 while there is none.
        self.interrupted_by = 0
        self._every = every
        self._clock = clock
        self._interrupts = Interrupts()
        self._ranks = Ranks()
        self._last_save = 0.0
        self._last_step = 0
        self._resumed_at: int | None = None
        self._epoch_began: Mapping[str, Any] | None = None

    def begin(self, step: int, ranks: Ranks) -> None:
        """A training begins at `step`; one that is past 0 is a resume."""
        self.interrupted_by = 0
        self._ranks = ranks
        self._last_save = self._clock()
        self._last_step = step
        self._resumed_at = step or None
        self._interrupts.catch()

    def end(self) -> None:
        """Signals are again what they were."""
        self._interrupts.release()

    def is_due(self, step: int) -> bool:
        """Whether to save the state after `step`: for the interval or for a signal; asked again, no."""
        if step == self._last_step:
            return False
        self._last_step = step
        due = self._every.is_due(step, self._clock() - self._last_save)
        # Clocks differ and a signal may reach one process only, so they ask each other.
        due_somewhere, self.interrupted_by = self._ranks.all_reduce_max(due, self._interrupts.received or 0)
        if due_somewhere or self.interrupted_by:
            self._last_save = self._clock()
        return bool(due_somewhere or self.interrupted_by)

    def epoch_begins(self, directory: Path) -> None:
        """Remember the random state from which the order of this epoch may be drawn; after a resume, restore it."""
        if self._resumed_at is not None:
            restore_epoch_begin(directory, self._resumed_at, self._ranks.index, self._ranks.count)
            self._resumed_at = None
        self._epoch_began = random_state(None, self._ranks.count)

    def random_state(self) -> dict[str, Any]:
        """That of this process, now."""
        return random_state(self._epoch_began, self._ranks.count)
