"""What a schedule costs and what it shows, over several trajectories, and which schedules no other one beats."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from emtoolkit.analysis.compare import Comparison, Comparisons, View, verdict


@dataclass(frozen=True, slots=True)
class ScheduleCost:
    """A schedule over all trajectories: means of its checkpoints, bytes and RMSE, and its brackets for new questions.

    `bytes` is None where a checkpoint is not on this machine. `seen` counts the trajectories whose onset has a bracket
    with both ends, `of` those that the reference sees it in, and `width` is the median width of the brackets, infinite
    where the schedule misses an onset that the reference sees.
    """

    schedule: str
    checkpoints: float
    rmse: float
    bytes: float | None = None
    width: float = math.inf
    seen: int = 0
    of: int = 0


def schedule_costs(found: Comparisons) -> list[ScheduleCost]:
    """The costs of the schedules that all trajectories can judge."""
    costs = []
    for number in range(len(found.trajectories[0].views)):
        views = [(each.views[number], each) for each in found.trajectories]
        if not any(math.isnan(view.rmse) for view, _ in views):
            costs.append(_cost(views))
    return costs


def _cost(views: Sequence[tuple[View, Comparison]]) -> ScheduleCost:
    sizes = [view.bytes for view, _ in views]
    seen, widths = 0, []
    there = [(view, of.reference) for view, of in views if _seen(of.reference, of.reference)]
    for view, reference in there:
        if _seen(view, reference) and view.new_questions is not None:
            seen += 1
            widths.append(view.new_questions.bracket.width or math.inf)
    return ScheduleCost(
        views[0][0].schedule,
        fmean(len(view.steps) for view, _ in views),
        fmean(view.rmse for view, _ in views),
        None if None in sizes else fmean(size for size in sizes if size is not None),
        median(widths) if widths and seen == len(there) else math.inf,
        seen,
        len(there),
    )


def _seen(view: View, reference: View) -> bool:
    return verdict(reference.new_questions, view.new_questions) == "seen"


def pareto_front(
    costs: Sequence[ScheduleCost], values: Callable[[ScheduleCost], tuple[float, float]]
) -> list[ScheduleCost]:
    """The schedules to which no other is equal or better in both of `values` and better in one, by the first value.

    A schedule whose second value is infinite is never on the front.
    """

    def dominates(one: ScheduleCost, other: ScheduleCost) -> bool:
        a, b = values(one), values(other)
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    finite = [each for each in costs if math.isfinite(values(each)[1])]
    front = [each for each in finite if not any(dominates(other, each) for other in finite)]
    return sorted(front, key=values)
