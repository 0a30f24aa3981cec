"""How a training is saved: the protocol of the two strategies, which own every check of the process they run in.

`ScheduledCheckpointCallback` forwards the events of the Trainer to one strategy, in every process of the training.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerControl, TrainerState, TrainingArguments

from emtoolkit.saving.model_state import ModelState
from emtoolkit.saving.ranks import Ranks
from emtoolkit.saving.resume_timing import ResumeTiming
from emtoolkit.saving.session import SavingSession
from emtoolkit.schedules.save_options import SaveOptions
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.steps import Steps


@dataclass(frozen=True, slots=True)
class TrainerEvent:
    """The arguments of one event of the Trainer; `objects` are its keyword arguments (model, optimizer, …)."""

    args: TrainingArguments
    state: TrainerState
    control: TrainerControl
    objects: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The number of optimizer steps so far."""
        return self.state.global_step

    @property
    def model(self) -> Any:
        return self.objects["model"]


@dataclass(frozen=True)
class SavingSetup:
    """Everything that a strategy needs to know about the training that begins.

    `also_save` are single steps besides those of `schedule`. `open_session` is called in process 0 only.
    `stateful_callbacks` are those whose states a resume restores. `trainer` finds the Trainer, or None, while
    `callback` handles one of its events.
    """

    directory: Path
    schedule: Schedule
    also_save: frozenset[int]
    total_steps: int
    options: SaveOptions
    ranks: Ranks
    timing: ResumeTiming
    open_session: Callable[[ModelState], SavingSession]
    stateful_callbacks: Callable[[], list[Any]]
    trainer: Callable[[], Any]
    callback: Any

    @cached_property
    def steps(self) -> Steps:
        """The steps of the schedule that are known beforehand."""
        return self.schedule.known_steps(self.total_steps)

    def is_scheduled(self, step: int) -> bool:
        """Whether the checkpoint of `step` is saved."""
        return step in self.steps or step in self.also_save


class SavingStrategy(Protocol):
    """Saves one training; created when the training begins. Every process calls every method except the last."""

    @property
    def waited_seconds(self) -> float:
        """How long the training thread has waited for earlier saves, in seconds."""

    def between_steps(self, event: TrainerEvent) -> None:
        """A step or an epoch begins: save the resume state of the step before if it is due.

        Raises:
            TrainingInterrupted: a signal came, and the state is saved.
        """

    def before_update(self) -> None:
        """The optimizer begins to change the weights."""

    def after_update(self, event: TrainerEvent) -> None:
        """The optimizer has changed the weights, and the Trainer has not counted the step yet."""

    def finish_copy(self) -> None:
        """Something other than the training may change the weights: finish a copy that is being made beside it."""

    def step_ended(self, event: TrainerEvent) -> None:
        """Save the step if it is scheduled.

        Raises:
            CheckpointError: an earlier save failed.
        """

    def trainer_saved(self, event: TrainerEvent) -> None:
        """The Trainer has written a save of its own."""

    def training_ended(self, event: TrainerEvent) -> None:
        """Save the last step, whatever ended training, and wait until everything is on disk."""

    def training_failed(self, error: BaseException | None) -> None:
        """Save the last complete step of a training that an exception, `error` if known, ended; in process 0 only."""
