"""When a step and the resume state are saved on demand, and with which random state: the same in every process.

A resume continues between two steps: after the evaluation that belongs to the earlier step, and with the random state
from which the later step is trained. On a resume `Trainer` sets the random generators after it has fetched the batches
of that step or, at the beginning of an epoch, before it shuffles; the random state is read at the same moments.
"""

import signal
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from emtoolkit.saving.ranks import Ranks
from emtoolkit.saving.requests import SAVE, STOP, RequestedSaves
from emtoolkit.saving.resume_state import random_state, restore_epoch_begin
from emtoolkit.saving.signals import DeferredSignals, TrainingInterrupted
from emtoolkit.schedules.resume_keep import kept_states
from emtoolkit.schedules.save_options import SaveOptions


class ResumeTiming:
    """The interval, the signals and the random state at the beginning of the epoch, for one training at a time."""

    def __init__(self, options: SaveOptions, clock: Callable[[], float]) -> None:
        # The number of the signal that stops training; 0 if there is none.
        self.interrupted_by = 0
        # Whether somebody asked for the step between two steps; see `requests`.
        self.save_asked = False
        self.requests = RequestedSaves()
        self._stop_asked = False
        self._interval = options.resume_interval
        self._resume_keep = options.resume_keep
        self._clock = clock
        self._signals = DeferredSignals(options.signals)
        self._ranks = Ranks()
        self._last_save = 0.0
        self._last_step = 0
        self._resumed_at: int | None = None
        self._epoch_begin: Mapping[str, Any] | None = None
        self._kept: Container[int] = ()

    def begin(self, step: int, ranks: Ranks, directory: Path, total_steps: int) -> None:
        """A training of `total_steps` into `directory` begins at `step`; a step after 0 means a resume."""
        self._kept = kept_states(self._resume_keep, total_steps)
        self.interrupted_by = 0
        self.save_asked = self._stop_asked = False
        self._ranks = ranks
        self._last_save = self._clock()
        self.requests.begin(directory if ranks.index == 0 else None, self._last_save)
        self._last_step = step
        self._resumed_at = step or None
        self._signals.defer()

    def end(self) -> None:
        """Restore the earlier signal handlers."""
        self._signals.restore()

    def is_due(self, step: int) -> bool:
        """Whether to save the state after `step`: the interval, a signal or a request; true once for each step."""
        if step == self._last_step:
            return False
        self._last_step = step
        now = self._clock()
        due = self._interval.is_due(step, now - self._last_save) or step in self._kept
        # Clocks differ between processes, a signal may reach only one of them, and process 0 has the directory.
        due_somewhere, received, asked = self._ranks.all_reduce_max(
            due, self._signals.received or 0, self.requests.look(now)
        )
        self.save_asked, self._stop_asked = bool(asked & SAVE), bool(asked & STOP)
        self.interrupted_by = received or (signal.SIGTERM if self._stop_asked else 0)
        is_due = bool(due_somewhere or self.interrupted_by or self.save_asked)
        if is_due:
            self._last_save = self._clock()
        return is_due

    def raise_if_interrupted(self, step: int) -> None:
        """End a training that a signal or a request stops, after its state at `step` has been saved.

        Raises:
            TrainingInterrupted: a signal came, or `stop-now`, which counts as SIGTERM.
        """
        if self.interrupted_by:
            raise TrainingInterrupted(step, self.interrupted_by, asked=self._stop_asked)

    def epoch_begins(self, directory: Path) -> None:
        """Store the random state from which this epoch may be shuffled; restore it first after a resume."""
        if self._resumed_at is not None:
            restore_epoch_begin(directory, self._resumed_at, self._ranks.index, self._ranks.count)
            self._resumed_at = None
        self._epoch_begin = random_state(None, self._ranks.count)

    def random_state(self) -> dict[str, Any]:
        """The current random state of this process, and its state at the beginning of the epoch."""
        return random_state(self._epoch_begin, self._ranks.count)
