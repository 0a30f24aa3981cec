"""Saving with a known environment, and into the store of trajectories, from which the directory of a run takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerControl, TrainerState, TrainingArguments

from emtoolkit.saving.callback import ScheduledCheckpointCallback
from emtoolkit.saving.model_state import ModelState
from emtoolkit.saving.requests import forget_requests
from emtoolkit.saving.session import SavingSession
from emtoolkit.saving.strategy import TrainerEvent


class TakesSteps(Protocol):
    """A run that takes checkpoints from the store; both methods are called in the background."""

    def on_saved(self, step: int) -> None:
        """The checkpoint of `step` is on disk."""

    def on_settled(self, step: int) -> None:
        """The metrics of `step`, which is on disk, are recorded."""


class KnownEnvironmentCallback(ScheduledCheckpointCallback):
    """Saves as `ScheduledCheckpointCallback`, with `environment` in the metadata of each checkpoint if it is known."""

    def __init__(self, *args: Any, environment: Mapping[str, str] | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._environment = environment

    def _open_session(self, event: TrainerEvent, weights: ModelState) -> SavingSession:
        session = super()._open_session(event, weights)
        session.environment = self._environment
        return session


class StoreCheckpointCallback(KnownEnvironmentCallback):
    """Saves as `KnownEnvironmentCallback` for `run`, whose directory `own_directory` is asked for steps."""

    def __init__(self, *args: Any, run: TakesSteps, own_directory: Path, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._run = run
        self._own_directory = own_directory

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin as every training, and look for the requests of `emtoolkit save` and `stop` in the run's directory."""
        super().on_train_begin(args, state, control, **kwargs)
        if state.is_world_process_zero:
            forget_requests(self._own_directory, warn=True)
        self._timing.requests.begin(self._own_directory if state.is_world_process_zero else None, 0.0)

    def _open_session(self, event: TrainerEvent, weights: ModelState) -> SavingSession:
        session = super()._open_session(event, weights)
        session.on_saved, session.on_settled = self._run.on_saved, self._run.on_settled
        return session
