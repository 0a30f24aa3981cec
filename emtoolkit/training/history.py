"""The logged metrics of an earlier training in the W&B run of a run that took its checkpoints.

`trainer_state.json` holds what the Trainer logged. The names and the axis are those of transformers' W&B callback.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.guarded_run import GuardedRun
from emtoolkit.artifacts.run_history import STEP_AXIS, RunHistory
from emtoolkit.checkpoints.layout import TRAINER_STATE
from emtoolkit.json_files import object_in, read_json

# Transformers gives these to the summary, because they describe a whole training.
_OF_A_TRAINING = (
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
    "total_flos",
)


def log_history(run: GuardedRun, store: Path, *, after: int) -> None:
    """Log the history of the training in `store` after the step `after` to `run`, as far as `run` lacks it."""
    if run.run is None:
        return
    history = RunHistory() if run.history is None else run.history
    for entry in _history(store):
        if int(entry["step"]) > after and (values := history.lacking(_named(entry))):
            run.call(partial(run.run.log, values))


def _history(store: Path) -> list[Mapping[str, Any]]:
    try:
        history = object_in(read_json(store / TRAINER_STATE, finite=False)).get("log_history")
    except (OSError, ValueError):
        return []
    entries = history if isinstance(history, list) else []
    # The last entry sums up a whole training, which this run is not.
    rows = (entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("step"), int))
    return [entry for entry in rows if not entry.keys() & set(_OF_A_TRAINING)]


def _named(entry: Mapping[str, Any]) -> dict[str, Any]:
    named = {
        f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}": value
        for name, value in entry.items()
        if name != "step"
    }
    return named | {STEP_AXIS: entry["step"]}
