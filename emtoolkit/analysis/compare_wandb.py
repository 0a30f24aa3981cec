"""A comparison of schedules as a W&B run: a table of all views, plots of their costs and curves, and the figure.

The log of an offline run holds the same, and `wandb sync` sends it.
"""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from emtoolkit.analysis.compare import Comparison, Comparisons, View, verdict
from emtoolkit.analysis.compare_figure import compare_figure
from emtoolkit.analysis.onset_text import event_text
from emtoolkit.analysis.schedule_costs import schedule_costs
from emtoolkit.artifacts.client_variables import check_client_variables
from emtoolkit.artifacts.names import run_labels
from emtoolkit.artifacts.run_end import finish_run
from emtoolkit.artifacts.run_mode import Mode
from emtoolkit.artifacts.server import client_limits, why_not_logged_in, why_unreachable
from emtoolkit.checkpoints.publications import WandbRun
from emtoolkit.errors import ConfigError, UserError, first_line, nearest

logger = logging.getLogger(__name__)

_MODES: Mapping[str, Mode] = {"online": "online", "offline": "offline", "disabled": "disabled"}
_PROJECT = "emtoolkit"
# The time limit for the end of the run's log, in seconds.
_FINISH_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """A W&B run; `log` is the directory that `wandb sync` sends where W&B lacks the run."""

    path: str
    log: Path
    sent: bool


def chosen_mode(name: str) -> Mode:
    """The mode `name`; offline with a warning in place of online, where W&B cannot be reached.

    Raises:
        ConfigError: `name` is not a mode, or the value of a W&B variable is refused.
    """
    if name not in _MODES:
        raise ConfigError(f"--wandb: {name!r} is not one of {', '.join(_MODES)}{nearest(name, _MODES)}")
    if name != "disabled":
        check_client_variables()
    if name == "online" and (reason := why_not_logged_in() or why_unreachable()):
        logger.warning("W&B: %s, so the run is logged offline", reason)
        return "offline"
    return _MODES[name]


def log_comparison(found: Comparisons, mode: Mode) -> LoggedRun | None:
    """Log the comparison to a run of its own; None if W&B is disabled. A failure of W&B is one warning."""
    if mode == "disabled":
        return None
    try:
        return _logged(found, mode)
    except Exception as error:  # noqa: BLE001 - the client documents no set of exceptions
        logger.warning("W&B lacks this comparison (%s)", first_line(error))
        return None


def _logged(found: Comparisons, mode: Mode) -> LoggedRun:
    import wandb

    quiet: dict[str, Any] = {"silent": True, "console": "off", "x_disable_stats": True, "save_code": False}
    limits = client_limits() | {"finish_timeout": _FINISH_SECONDS, "finish_timeout_raises": True}
    run = wandb.init(
        mode=mode,
        project=os.environ.get("WANDB_PROJECT") or _PROJECT,
        job_type="comparison",
        **run_labels(f"compare-{found.event.metric}"),
        config={
            "event": asdict(found.event),
            "schedules": [view.schedule for view in found.trajectories[0].views],
            "trajectories": [each.trajectory for each in found.trajectories],
            "notes": list(found.notes),
        },
        settings=wandb.Settings(**quiet, **(limits if mode == "online" else {})),
    )
    log, path = WandbRun.of(run), str(run.path)
    problem: str | None = "it was not logged completely"
    try:
        run.log(_content(found))
    finally:
        problem = finish_run(run, _FINISH_SECONDS, failed=False)
    if problem is not None:
        logger.warning("W&B lacks a part of this comparison (%s)", problem)
    return LoggedRun(path, log.log.parent, mode == "online" and problem is None)


def _content(found: Comparisons) -> dict[str, Any]:
    """The table, its plot, a plot of curves for each trajectory, and the figure where matplotlib is there."""
    import wandb

    rows = [_without_nan(row) for row in table_rows(found)]
    table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
    x = "checkpoints" if any(row["bytes"] is None for row in rows) else "bytes"
    title = f"Width of the bracket: {event_text(found.event)}"
    plot: Any = wandb.plot
    content: dict[str, Any] = {"schedules": table, "schedules_cost": plot.scatter(table, x, "new_width", title=title)}
    for each in found.trajectories:
        lines = list(_lines(each))
        content[f"curves/{Path(each.trajectory).name}"] = plot.line_series(
            xs=[steps for _, steps, _ in lines],
            ys=[values for _, _, values in lines],
            keys=[name for name, _, _ in lines],
            title=f"{found.event.metric}, {each.persona}",
            xname="step",
        )
    try:
        figure = compare_figure(found, schedule_costs(found))
    except UserError as error:
        logger.warning("%s", error)
        return content
    from PIL import Image

    picture = BytesIO()
    figure.savefig(picture, format="png")
    content["figure"] = wandb.Image(Image.open(picture))
    return content


def table_rows(found: Comparisons) -> list[dict[str, Any]]:
    """A row for each view: persona, trajectory, the values of the view, and the verdict and width of each bracket."""
    return [_row(view, each) for each in found.trajectories for view in (each.reference, *each.views)]


def _row(view: View, of: Comparison) -> dict[str, Any]:
    row = {"persona": of.persona, "trajectory": of.trajectory} | view.row()
    for name, inference in (("new", "new_questions"), ("these", "these_questions")):
        onset = getattr(view, inference)
        row[f"{name}_verdict"] = verdict(getattr(of.reference, inference), onset)
        row[f"{name}_width"] = None if onset is None else onset.bracket.width
    return row


def _lines(each: Comparison) -> Iterator[tuple[str, list[int], list[float]]]:
    """The name, the steps and the values of the reference and of each schedule that it can judge."""
    values = {point.step: point.value for point in each.curve.new_questions if not math.isnan(point.value)}
    for view in (each.reference, *each.views):
        if not view.missing:
            steps = [step for step in view.steps if step in values]
            yield view.schedule, steps, [values[step] for step in steps]


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
