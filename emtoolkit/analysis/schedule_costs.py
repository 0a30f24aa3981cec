"""The costs of schedules and their views of the onset, over several trajectories, and the Pareto fronts."""

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


@dataclass(frozen=True, slots=True)
class ScheduleCosts:
    """The costs of several schedules, and their two Pareto fronts.

    `width_front` is of disk and the width of the bracket, of checkpoints and the width where `sizes_known` is false;
    `error_front` is of checkpoints and RMSE. `widest` is the largest finite width, 1 without one.
    """

    schedules: tuple[ScheduleCost, ...]
    sizes_known: bool
    widest: float
    width_front: tuple[ScheduleCost, ...]
    error_front: tuple[ScheduleCost, ...]

    @classmethod
    def of(cls, schedules: Sequence[ScheduleCost]) -> "ScheduleCosts":
        """The fronts of `schedules`."""
        sizes_known = all(each.bytes is not None for each in schedules)

        def disk(each: ScheduleCost) -> float:
            return each.checkpoints if not sizes_known or each.bytes is None else each.bytes

        return cls(
            tuple(schedules),
            sizes_known,
            max((each.width for each in schedules if math.isfinite(each.width)), default=1.0),
            tuple(pareto_front(schedules, lambda each: (disk(each), each.width))),
            tuple(pareto_front(schedules, lambda each: (each.checkpoints, each.rmse))),
        )


@dataclass(frozen=True, slots=True)
class ScheduleSummary:
    """A schedule over the trajectories of one persona.

    `rmse` is the mean over the trajectories that can judge the schedule, NaN without one. `seen` counts the
    trajectories of `trajectories` in which the schedule sees the onset, and `width` is the median width of its brackets
    there, None without one.
    """

    schedule: str
    rmse: float
    seen: int
    trajectories: int
    width: float | None


def persona_summaries(found: Comparisons) -> dict[str, list[ScheduleSummary]]:
    """The summaries of all schedules, for each persona with several trajectories."""
    of_personas: dict[str, list[Comparison]] = {}
    for each in found.trajectories:
        of_personas.setdefault(each.persona, []).append(each)
    return {
        persona: [_summary([(each.views[i], each.reference) for each in several]) for i in range(len(several[0].views))]
        for persona, several in of_personas.items()
        if len(several) > 1
    }


def _summary(views: Sequence[tuple[View, View]]) -> ScheduleSummary:
    """The summary of one schedule, from its view and the reference of each trajectory."""
    errors = [view.rmse for view, _ in views if not math.isnan(view.rmse)]
    onsets = [view.new_questions for view, reference in views if _seen(view, reference)]
    widths = [width for onset in onsets if onset is not None and (width := onset.bracket.width) is not None]
    return ScheduleSummary(
        views[0][0].schedule,
        fmean(errors) if errors else math.nan,
        len(onsets),
        len(views),
        median(widths) if widths else None,
    )


def schedule_costs(found: Comparisons) -> ScheduleCosts:
    """The costs of the schedules that all trajectories can judge."""
    costs = []
    for number in range(len(found.trajectories[0].views)):
        views = [(each.views[number], each) for each in found.trajectories]
        if not any(math.isnan(view.rmse) for view, _ in views):
            costs.append(_cost(views))
    return ScheduleCosts.of(costs)


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

    def dominates(better: ScheduleCost, worse: ScheduleCost) -> bool:
        a, b = values(better), values(worse)
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    finite = [each for each in costs if math.isfinite(values(each)[1])]
    front = [cost for cost in finite if not any(dominates(rival, cost) for rival in finite)]
    return sorted(front, key=values)
