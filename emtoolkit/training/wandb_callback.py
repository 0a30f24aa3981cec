"""Transformers' W&B callback behind a guard: a failure of W&B's client ends no training."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import WandbCallback

from emtoolkit.artifacts.guarded_run import GuardedRun


class GuardedWandbCallback(WandbCallback):
    """Logs what `WandbCallback` logs, until W&B's client has failed."""

    def __init__(self, run: GuardedRun) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers has no hints here
        self._guarded = run

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Add the arguments of the training to the run's config."""
        begin: Callable[..., None] = super().on_train_begin
        self._guarded.call(lambda: begin(args, state, control, model=model, **kwargs))

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
