"""The curve of an evaluation in the W&B run of the training, over the step of the checkpoint.

The run is resumed, so its history only grows: rows of the training, their axis, the config and the state stay. The
names begin with `evaluation-SETTINGS/`, so evaluations with other questions or another judge are other curves.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.attached_run import attached_run, define_training_axis
from emtoolkit.artifacts.run_mode import Mode
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.errors import UserError, first_line
from emtoolkit.evaluation.curve import AXIS, curve
from emtoolkit.evaluation.identity import digest_of
from emtoolkit.evaluation.measure_rows import summarise_measures
from emtoolkit.evaluation.results import EvaluationResult, by_step
from emtoolkit.evaluation.wandb_content import Content, place_of
from emtoolkit.hub.names import is_hub
from emtoolkit.shell_command import quoted_command
from emtoolkit.trajectory import Trajectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """The newest W&B run of a training, which has ended in `state`."""

    entity: str
    project: str
    id: str
    state: str

    @property
    def path(self) -> str:
        """`entity/project/id`."""
        return f"{self.entity}/{self.project}/{self.id}"


def training_run(reference: str, mode: Mode) -> TrainingRun:
    """The W&B run of the trajectory `reference`, which must have ended.

    Raises:
        UserError: W&B is not online, has no such run, or the run has not ended.
    """
    if mode != "online":
        raise UserError(f"--into-run: W&B is {mode}; log in with 'wandb login', and add --wandb online")
    if os.environ.get("WANDB_SWEEP_ID"):
        raise UserError(
            "--into-run: a W&B agent's machines would write into one run at once; collect their results first"
        )
    path = _path(reference)
    import wandb

    try:
        run = wandb.Api().run(path)
    except (wandb.errors.Error, ValueError, TimeoutError) as error:
        raise UserError(
            f"--into-run: W&B has no run {path} ({first_line(error)}); "
            f"{quoted_command('emtoolkit', 'sync', Path(reference))} sends the run of an offline training"
        ) from None
    if run.state in ("running", "pending", "preempting"):
        raise UserError(
            f"--into-run: the run {path} is {run.state}, and another writer would disturb it; wait for its end, or "
            "remove the option"
        )
    return TrainingRun(str(run.entity), str(run.project), str(run.id), str(run.state))


def _path(reference: str) -> str:
    """`entity/project/id` of the run that logged the newest checkpoint of the trajectory."""
    if Path(reference).is_dir():
        runs = Publications.read(Path(reference)).runs
        if not runs:
            raise UserError(f"--into-run: {reference}: no W&B run logged to this directory; remove the option")
        return "/".join(filter(None, (*place_of(reference), [*runs][-1])))
    if is_hub(reference):
        raise UserError(
            f"--into-run: {reference}: is on the Hugging Face hub, which names no W&B run; remove the option"
        )
    import wandb

    newest = Trajectory.open(reference)[-1].artifact
    creator = wandb.Api().artifact(newest).logged_by()
    if creator is None:
        raise UserError(f"--into-run: W&B does not know any more which run made {newest}; remove the option")
    return f"{creator.entity}/{creator.project}/{creator.id}"


def log_into(result: EvaluationResult, reference: str, training: TrainingRun) -> None:
    """Add the steps of `result` that the run lacks, or has with other values, to its history.

    A failure of W&B is a warning; the same command tries again.

    Raises:
        UserError: the results cannot be read.
    """
    content = Content.read(result.directory, reference, result.all_steps)
    prefix = f"evaluation-{content.settings_name}"
    rows = [_named(values, prefix) for values in curve(by_step(content.rows), summarise_measures(content.measured))]
    try:
        known = _content_in(training, prefix)
        missing = [row for row in rows if known.get(row[AXIS]) != row[f"{prefix}/content"]]
        if missing:
            _append(training, missing)
    except Exception as error:  # noqa: BLE001 - the client documents no set of exceptions
        logger.warning(
            "the curve could not be written into the run %s (%s); the same command tries again",
            training.path,
            first_line(error),
        )


def _named(values: Mapping[str, float], prefix: str) -> dict[str, float]:
    """`values` under names of their own, and a number that stands for all of them."""
    content = int(digest_of(dict(values))[:12], 16)
    return {f"{prefix}/{name}": value for name, value in values.items() if name != AXIS} | {
        f"{prefix}/content": content,
        AXIS: values[AXIS],
    }


def _content_in(training: TrainingRun, prefix: str) -> dict[float, float]:
    """By step, the number of the last row that the run has."""
    import wandb

    history = wandb.Api().run(training.path).scan_history(keys=[AXIS, f"{prefix}/content"])
    return {row[AXIS]: row[f"{prefix}/content"] for row in history}


def _append(training: TrainingRun, rows: list[dict[str, float]]) -> None:
    def define_axes(run: Any) -> None:
        define_training_axis(run)
        run.define_metric(AXIS, summary="none")
        for name in sorted({name for row in rows for name in row} - {AXIS}):
            run.define_metric(name, step_metric=AXIS, step_sync=False, hidden=name.endswith("/content"))

    place: dict[str, Any] = {"project": training.project, "entity": training.entity}
    with attached_run(training.id, training.state, define_axes, **place) as run:
        for row in rows:
            run.log(row)
