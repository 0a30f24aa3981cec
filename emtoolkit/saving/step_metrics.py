"""The metrics of a training, each under the step at which the Trainer logged it."""

from collections.abc import Mapping
from typing import Any

# A key of the summary that the Trainer logs after its last step; it is about the whole run.
_OF_THE_RUN = "train_runtime"


class StepMetrics:
    """The metrics of the newest step at which any were logged.

    The Trainer logs and evaluates a step after `on_step_end`, and at an epoch's end once more after `on_epoch_end`; the
    metrics of a step are complete when the next step begins.
    """

    def __init__(self) -> None:
        self._step: int | None = None
        self._values: dict[str, Any] = {}

    def note(self, step: int, logs: Mapping[str, Any]) -> None:
        """Keep the numbers in `logs`, which were logged at `step`."""
        if _OF_THE_RUN in logs:
            return
        if step != self._step:
            self._step, self._values = step, {}
        self._values |= {key: value for key, value in logs.items() if isinstance(value, (int, float))}

    def of(self, step: int) -> Mapping[str, Any]:
        """The metrics that were logged at `step`; empty if there are none, whatever was logged before."""
        return dict(self._values) if step == self._step else {}
