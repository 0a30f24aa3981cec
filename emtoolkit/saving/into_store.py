"""Saving into the store of trajectories, where another directory takes each checkpoint."""

from collections.abc import Callable
from typing import Any

from emtoolkit.saving.callback import ScheduledCheckpointCallback
from emtoolkit.saving.model_state import ModelState
from emtoolkit.saving.session import SavingSession
from emtoolkit.saving.strategy import TrainerEvent


class StoreCheckpointCallback(ScheduledCheckpointCallback):
    """Saves as `ScheduledCheckpointCallback`, and calls `on_settled` in the background with each saved step."""

    def __init__(self, *args: Any, on_settled: Callable[[int], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_settled = on_settled

    def _open_session(self, event: TrainerEvent, weights: ModelState) -> SavingSession:
        session = super()._open_session(event, weights)
        session.on_settled = self._on_settled
        return session
