"""A figure of schedules: how many checkpoints each saves, and the error of the curve that it sees."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from emtoolkit.analysis.compare import Comparisons
from emtoolkit.errors import DataError, UserError
from emtoolkit.storage.atomic import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Two of Okabe and Ito's colours, which colour-blind readers can tell apart.
_FRONT, _DOMINATED = "#0072B2", "#777777"


@dataclass(frozen=True, slots=True)
class ScheduleCost:
    """A schedule with its mean number of checkpoints and mean RMSE over the trajectories."""

    schedule: str
    checkpoints: float
    rmse: float


def schedule_costs(found: Comparisons) -> list[ScheduleCost]:
    """The costs of the schedules that all trajectories can judge."""
    costs = []
    for views in zip(*(each.views for each in found.trajectories), strict=True):
        sizes, errors = [len(view.steps) for view in views], [view.rmse for view in views]
        if not any(math.isnan(error) for error in errors):
            costs.append(ScheduleCost(views[0].schedule, fmean(sizes), fmean(errors)))
    return costs


def pareto_front(costs: Sequence[ScheduleCost]) -> list[ScheduleCost]:
    """The schedules to which no other is equal or better in both and better in one, by their checkpoints."""

    def dominates(one: ScheduleCost, other: ScheduleCost) -> bool:
        a, b = (one.checkpoints, one.rmse), (other.checkpoints, other.rmse)
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    front = [each for each in costs if not any(dominates(other, each) for other in costs)]
    return sorted(front, key=lambda each: (each.checkpoints, each.rmse))


def compare_figure(found: Comparisons) -> "Figure":
    """Checkpoints against error: a dot for each schedule, and a line through the Pareto front.

    Raises:
        UserError: matplotlib is not installed.
        DataError: no schedule can be judged.
    """
    try:
        from emtoolkit.analysis.notebook_figure import NotebookFigure
    except ImportError as error:
        raise UserError("figure: matplotlib is not installed; run pip install 'emtoolkit[plot]'") from error
    costs = schedule_costs(found)
    if not costs:
        raise DataError("figure: no schedule can be judged, because not all of their steps were evaluated")
    front = pareto_front(costs)
    figure = NotebookFigure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    at, errors = [each.checkpoints for each in front], [each.rmse for each in front]
    axes.step(at, errors, where="post", color=_FRONT, linewidth=1.2)
    for each in costs:
        on_front = each in front
        colour, marker = (_FRONT, "o") if on_front else (_DOMINATED, "x")
        axes.plot([each.checkpoints], [each.rmse], marker, color=colour, markersize=6)
        text = each.schedule.replace("$", r"\$")
        axes.annotate(text, (each.checkpoints, each.rmse), xytext=(5, 5), textcoords="offset points", color=colour)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.15)
    axes.set_xlabel("checkpoints")
    axes.set_ylabel("RMSE of the interpolated curve")
    axes.set_title("Schedules; the line is the Pareto front", loc="left", fontsize=11)
    return figure


def save_compare_figure(found: Comparisons, path: Path) -> None:
    """Write the figure in the format of the suffix of `path`: .png, .pdf or .svg.

    Raises:
        UserError: the suffix is of another format, or `compare_figure` raises.
    """
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--figure: {path}: expected a name that ends in .png, .pdf or .svg")
    figure, content = compare_figure(found), BytesIO()
    figure.savefig(content, format=path.suffix[1:])
    write_file(path, content.getvalue())
