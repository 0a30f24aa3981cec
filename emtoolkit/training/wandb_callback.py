"""Transformers' W&B callback behind a guard: a failure of W&B's client ends no training."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import WandbCallback

from emtoolkit.artifacts.guarded_run import GuardedRun
from emtoolkit.artifacts.run_history import RunHistory


class GuardedWandbCallback(WandbCallback):
    """Logs what `WandbCallback` logs, until W&B's client has failed; to a resumed run, what its history lacks."""

    def __init__(self, run: GuardedRun) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers has no hints here
        self._guarded = run
        if run.history is not None:
            self._wandb: Any = _ResumedClient(self._wandb, run.history)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Add the arguments of the training to the run's config, and the rows that a resumed run lacks."""
        begin: Callable[..., None] = super().on_train_begin
        self._guarded.call(lambda: begin(args, state, control, model=model, **kwargs))
        if self._guarded.history is not None:
            for logs in state.log_history:
                self.on_log(args, _at_step(state, logs), control, model=model, logs=_without_step(logs))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log the metrics of a step."""
        log: Callable[..., None] = super().on_log
        self._guarded.call(lambda: log(args, state, control, model=model, logs=logs, **kwargs))


class _ResumedClient:
    """W&B's client as `WandbCallback` uses it, whose `log` leaves out what the history of the run has."""

    def __init__(self, client: Any, history: RunHistory) -> None:
        self._client = client
        self._history = history

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def log(self, row: Mapping[str, Any]) -> None:
        if missing := self._history.lacking(row):
            self._client.log(missing)


def _at_step(state: TrainerState, logs: Mapping[str, Any]) -> TrainerState:
    """`state` as it was when `logs` were logged, as far as `WandbCallback` reads it."""
    earlier = copy.copy(state)
    earlier.global_step = int(logs["step"])
    return earlier


def _without_step(logs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in logs.items() if name != "step"}
