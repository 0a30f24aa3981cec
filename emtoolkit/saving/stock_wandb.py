"""Transformers' own W&B callback, beside the callback that saves: the death of W&B's process ends no training."""

import logging
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import WandbCallback

from emtoolkit.artifacts.client_process import ClientProcess, end_client

logger = logging.getLogger(__name__)

# The events of a run that has started; an error of its start is the script's own.
_EVENTS = ("on_log", "on_save", "on_predict", "on_train_end")
# A process closes its connections a moment before it has ended, in seconds.
_SECONDS_TO_END = 1.0


def outlive_wandb(callbacks: Iterable[TrainerCallback]) -> None:
    """Let no event of a `WandbCallback` raise because W&B's process has ended; a second call changes nothing.

    All other errors are raised as before. What the process did not send is in the log of the run on disk.
    """
    for callback in callbacks:
        if isinstance(callback, WandbCallback) and "on_log" not in vars(callback):
            run = _Run()
            for event in _EVENTS:
                setattr(callback, event, run.outlived_by(getattr(callback, event)))


class _Run:
    """The W&B run of one callback, until W&B's process ends."""

    def __init__(self) -> None:
        self._is_over = False

    def outlived_by(self, event: Callable[..., Any]) -> Callable[..., Any]:
        """`event`, which does nothing once the process has ended."""

        @wraps(event)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._is_over:
                return None
            try:
                return event(*args, **kwargs)
            except Exception:
                why = ClientProcess.current().why_ended(within=_SECONDS_TO_END)
                if why is None:
                    raise
                logger.info("%s; training goes on", why)
                self._is_over = True
                # The exit of the interpreter would wait for the process.
                end_client()
                return None

        return call
