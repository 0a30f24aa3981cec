"""The figure of `emtoolkit compare`: what each schedule sees of the curves, and what the schedules cost.

A panel for each schedule and persona has the reference of each trajectory in grey, the curve through the steps of the
schedule, and its brackets. Below are two Pareto fronts: disk against the width of the bracket, and checkpoints against
the error of the curve.
"""

import math
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emtoolkit.analysis.compare import Comparison, Comparisons
from emtoolkit.analysis.schedule_costs import ScheduleCost, ScheduleCosts
from emtoolkit.errors import DataError, UserError
from emtoolkit.storage.atomic import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of Okabe and Ito's colours, which colour-blind readers can tell apart.
_SEEN, _BRACKET, _OTHER = "#0072B2", "#E69F00", "#777777"
_PANEL_WIDTH, _PANEL_HEIGHT, _FRONT_HEIGHT = 3.0, 1.25, 3.2
_MEGABYTE = 1e6


def compare_figure(found: Comparisons, costs: ScheduleCosts) -> "Figure":
    """The curves as each schedule sees them, above the Pareto fronts.

    Raises:
        UserError: matplotlib is not installed.
        DataError: no schedule can be judged.
    """
    try:
        from emtoolkit.analysis.notebook_figure import NotebookFigure
    except ImportError as error:
        raise UserError("figure: matplotlib is not installed; run pip install 'emtoolkit[plot]'") from error
    if not costs.schedules:
        raise DataError("figure: no schedule can be judged, because not all of their steps were evaluated")
    names = [each.schedule for each in costs.schedules]
    personas = list(dict.fromkeys(each.persona for each in found.trajectories))
    heights = [_PANEL_HEIGHT * len(names) + 0.6, _FRONT_HEIGHT]
    size = (max(7.2, _PANEL_WIDTH * len(personas) + 0.6), sum(heights))
    figure = NotebookFigure(figsize=size, dpi=120, layout="constrained")
    (above,), (below,) = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)
    panels = above.subplots(len(names), len(personas), sharex=True, sharey=True, squeeze=False)
    for row, schedule in enumerate(names):
        for column, persona in enumerate(personas):
            of_persona = [each for each in found.trajectories if each.persona == persona]
            _draw_view(panels[row][column], of_persona, schedule, found.event.limit)
        panels[row][0].set_ylabel(_plain(schedule), fontsize=8)
    for column, persona in enumerate(personas):
        panels[0][column].set_title(_plain(persona), fontsize=9)
        panels[-1][column].set_xlabel("step", fontsize=8)
    above.suptitle(
        f"{found.event.metric}: grey all steps, blue those of the schedule, orange the bracket of the onset", fontsize=9
    )
    left, right = below.subplots(1, 2)
    _draw_width_front(left, costs)
    _draw_front(right, costs.schedules, costs.error_front, lambda each: (each.checkpoints, each.rmse))
    right.set_xlabel("checkpoints", fontsize=9)
    right.set_ylabel("RMSE of the interpolated curve", fontsize=9)
    return figure


def _draw_view(axes: Any, trajectories: Sequence[Comparison], schedule: str, limit: float) -> None:
    axes.axhline(limit, color=_OTHER, linewidth=0.6, linestyle="--")
    for each in trajectories:
        values = {point.step: point.value for point in each.curve.new_questions}
        view = next(view for view in each.views if view.schedule == schedule)
        reference = each.reference.steps
        axes.plot(reference, [values[step] for step in reference], color=_OTHER, linewidth=0.8)
        axes.plot(view.steps, [values[step] for step in view.steps], "o-", color=_SEEN, markersize=2.5, linewidth=0.9)
        if view.new_questions is not None and view.new_questions.bracket.width is not None:
            bracket = view.new_questions.bracket
            axes.axvspan(bracket.lower, bracket.upper, color=_BRACKET, alpha=0.3, linewidth=0)
    axes.tick_params(labelsize=7)


def _draw_width_front(axes: Any, costs: ScheduleCosts) -> None:
    """Disk, or checkpoints where a size is not known, against the width of the bracket; misses above a line."""
    known, top = costs.sizes_known, costs.widest

    def values(each: ScheduleCost) -> tuple[float, float]:
        return (each.checkpoints if not known or each.bytes is None else each.bytes / _MEGABYTE), each.width

    missed = [each for each in costs.schedules if not math.isfinite(each.width)]
    for each in missed:
        axes.plot([values(each)[0]], [1.35 * top], "x", color=_OTHER, markersize=6)
        _name(axes, f"{each.schedule}: {each.seen} of {each.of}", values(each)[0], 1.35 * top, _OTHER)
    _draw_front(axes, [each for each in costs.schedules if math.isfinite(each.width)], costs.width_front, values)
    axes.set_ylim(0, 1.6 * top)
    if missed:
        axes.axhline(1.2 * top, color=_OTHER, linewidth=0.6, linestyle=":")
    axes.set_xlabel("disk, MB" if known else "checkpoints", fontsize=9)
    axes.set_ylabel("median width of the bracket, steps", fontsize=9)
    axes.set_title("a cross misses the onset of some trajectories" if missed else "", loc="left", fontsize=8)


def _draw_front(
    axes: Any,
    costs: Sequence[ScheduleCost],
    front: Sequence[ScheduleCost],
    values: Callable[[ScheduleCost], tuple[float, float]],
) -> None:
    """A dot for each schedule, and a line through the Pareto front."""
    axes.step(*zip(*map(values, front), strict=True), where="post", color=_SEEN, linewidth=1.2) if front else None
    for each in costs:
        at, value = values(each)
        colour, marker = (_SEEN, "o") if each in front else (_OTHER, "x")
        axes.plot([at], [value], marker, color=colour, markersize=6)
        _name(axes, each.schedule, at, value, colour, above=each in front)
    # Room for the names.
    axes.margins(x=0.35, y=0.15)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8)


def _name(axes: Any, text: str, at: float, value: float, colour: str, *, above: bool = True) -> None:
    # Names of dots that are near each other stand on both sides.
    place = (5, 5) if above else (5, -11)
    axes.annotate(_plain(text), (at, value), xytext=place, textcoords="offset points", color=colour, fontsize=8)


def _plain(text: str) -> str:
    """`text` without formulas, which matplotlib sees between dollar signs."""
    return text.replace("$", r"\$")


def save_compare_figure(found: Comparisons, costs: ScheduleCosts, path: Path) -> None:
    """Write the figure in the format of the suffix of `path`: .png, .pdf or .svg.

    Raises:
        UserError: the suffix is of another format, or `compare_figure` raises.
    """
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--figure: {path}: expected a name that ends in .png, .pdf or .svg")
    figure, content = compare_figure(found, costs), BytesIO()
    figure.savefig(content, format=path.suffix[1:])
    write_file(path, content.getvalue())
