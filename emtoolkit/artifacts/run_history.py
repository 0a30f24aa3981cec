"""The history of a W&B run to which several parts of one training log: no value of a step is logged twice.

A resumed training computes the steps after its resume state again. W&B's client appends these rows to the history of a
resumed run, because its own step counts the calls of `log`. So rows are told apart by the Trainer's step.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from emtoolkit.artifacts.retries import retried

# The Trainer's name for the step, the axis of its metrics on W&B.
STEP_AXIS = "train/global_step"
# The key in a run's config that names the log of the part that began last.
PART = "emtoolkit_part"
_ROWS_PER_PAGE = 10_000


class RunHistory:
    """The names of the values that a run has at each step of its training."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._names: dict[int, set[str]] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Note that the run has `row`; a row without a step, such as that of an evaluation, is ignored."""
        if (step := _step_of(row)) is not None:
            self._names.setdefault(step, set()).update(name for name, value in row.items() if value is not None)

    def lacking(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The values of `row` that the run lacks at the step of `row`, with the step; empty if it lacks none."""
        step = _step_of(row)
        held = self._names.get(step, set()) if step is not None else set()
        missing = {name: value for name, value in row.items() if name not in held}
        return {**missing, STEP_AXIS: row[STEP_AXIS]} if missing and held else missing


def _step_of(row: Mapping[str, Any]) -> int | None:
    step = row.get(STEP_AXIS)
    return int(step) if isinstance(step, int | float) and step == step // 1 else None


def find_run(path: str) -> Any:
    """The run `entity/project/id` on W&B; None if the server answers that there is none.

    Raises:
        Exception: whatever W&B's client raises if the server does not answer.
    """
    import wandb

    try:
        return retried(lambda: wandb.Api().run(path))
    except (wandb.errors.CommError, ValueError) as error:
        if "Could not find run" in str(error):
            return None
        raise


def history_of(run: Any) -> RunHistory:
    """The history that W&B has of `run`, as `find_run` returns it.

    Raises:
        Exception: whatever W&B's client raises if the server does not answer.
    """
    return RunHistory(retried(lambda: list(run.scan_history(page_size=_ROWS_PER_PAGE, use_cache=False))))
