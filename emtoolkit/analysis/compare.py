"""The views that schedules have of a curve that was evaluated at more steps than any of them saves.

A schedule sees the points of the reference at its own steps. The baseline of a rise is step 0 for every schedule, since
the model before training needs no checkpoint; step 0 is a point of the curve only where the schedule saves it. Between
two steps the curve is interpolated linearly, and before the first one it has the first value: the same for all.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emtoolkit.analysis.curves import Curve, curve_of
from emtoolkit.analysis.onset import Bracket, Onset, Point, find_onset
from emtoolkit.analysis.onset_results import Event
from emtoolkit.analysis.sources import Sources
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.errors import DataError, UserError, located
from emtoolkit.evaluation.result_files import StoredEvaluation
from emtoolkit.notebook_tables import AsTable
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.selection import select_steps
from emtoolkit.schedules.steps import elided

# A chance of one half is known to ± 10 points.
_RESAMPLES = 100
# A step or a range of steps, which can be a part of a schedule; any other term is a rule.
_STEPS = re.compile(r"\d+|\d+-\d*:\d+")


@dataclass(frozen=True, slots=True)
class View:
    """One schedule's view of the reference.

    `missing` are steps of the schedule that the reference lacks; then nothing else is known. `bytes` is the size of the
    schedule's checkpoints, None where they are not on this machine. `rmse` and `largest_error` are those of the
    interpolated curve, the former weighted by the steps between the points of the reference. `chance` is the share of
    resamples of the questions in which the schedule has an onset with both ends.
    """

    schedule: str
    steps: tuple[int, ...]
    missing: tuple[int, ...]
    bytes: int | None
    rmse: float
    largest_error: float
    new_questions: Onset | None
    these_questions: Onset | None
    chance: float

    def row(self) -> dict[str, Any]:
        """The values, with the ends of the brackets in columns of their own."""
        row = {
            "schedule": self.schedule,
            "checkpoints": len(self.steps),
            "bytes": self.bytes,
            "rmse": self.rmse,
            "largest_error": self.largest_error,
        }
        for name, onset in (("new", self.new_questions), ("these", self.these_questions)):
            bracket = Bracket(None, None) if onset is None else onset.bracket
            row |= {f"{name}_status": None if onset is None else onset.status}
            row |= {f"{name}_lower": bracket.lower, f"{name}_upper": bracket.upper}
        return row | {"chance": self.chance}


@dataclass(frozen=True, slots=True)
class Comparison(AsTable):
    """The views of one trajectory; `reference` is that of all steps of the reference."""

    directory: Path
    trajectory: str
    persona: str
    curve: Curve
    reference: View
    views: tuple[View, ...]
    notes: tuple[str, ...]

    def _title(self) -> str:
        return f"{self.persona}, {self.trajectory}: {self.curve.metric}"

    def _rows(self) -> list[dict[str, Any]]:
        head = {"persona": self.persona, "trajectory": self.trajectory}
        return [head | view.row() for view in (self.reference, *self.views)]


@dataclass(frozen=True, slots=True)
class Comparisons(AsTable):
    """The comparisons of several trajectories; `notes` say which schedules could not be judged."""

    event: Event
    trajectories: tuple[Comparison, ...]
    notes: tuple[str, ...]

    def _title(self) -> str:
        return f"{self.event.metric}, threshold {self.event.threshold:g}"

    def _rows(self) -> list[dict[str, Any]]:
        return [row for each in self.trajectories for row in each._rows()]


def compare_all(sources: Sources, schedules: Sequence[str], event: Event, reference: str = "all") -> Comparisons:
    """`compare` of each trajectory, with `schedules` or else with those of the runs.

    Raises:
        UserError: there is no schedule or one cannot be read, or a trajectory lacks the metric.
    """
    specs = list(dict.fromkeys(schedules or sources.schedules))
    if not specs:
        raise UserError("--schedules: expected at least one schedule, such as every:25,dense-early")
    found = tuple(compare(each, specs, event, reference, resample=True) for each in sources.trajectories)
    notes = [*sources.notes, *(note for each in found for note in each.notes)]
    notes += dict.fromkeys(note for each in found for note in _past_the_end(specs, each.reference.steps[-1]))
    lengths = {each.reference.steps[-1]: each.directory for each in found}
    if len(lengths) > 1:
        ends = ", ".join(f"{directory} at step {step}" for step, directory in sorted(lengths.items()))
        notes.append(f"the trajectories end at different steps ({ends}), so a schedule has other steps in each")
    return Comparisons(event, found, tuple(notes))


def split_schedules(text: str) -> list[str]:
    """The schedules in a list: separated by `;`, or by commas, where steps and ranges belong to the rule after them.

    `every:25,dense-early,0,log2:512` are `every:25`, `dense-early` and `0,log2:512`.
    """
    if ";" in text:
        return [part.strip() for part in text.split(";") if part.strip()]
    found, current = list[str](), list[str]()
    for term in (part.strip() for part in text.split(",")):
        current.append(term)
        if not _STEPS.fullmatch(term):
            found.append(",".join(current))
            current = []
    return found + ([",".join(current)] if current else [])


def compare(
    evaluation: StoredEvaluation,
    schedules: Sequence[str],
    event: Event,
    reference: str = "all",
    *,
    resample: bool = False,
) -> Comparison:
    """The views of `schedules` in `evaluation`, at the steps that `reference` selects.

    The `chance` of the views is NaN without `resample`, which takes seconds.

    Raises:
        ScheduleError: a schedule cannot be read.
        DataError: the reference has fewer than three steps, or the evaluation lacks the metric.
    """
    curve = curve_of(evaluation, event.metric, event.kind)
    evaluated = [point.step for point in curve.new_questions]
    chosen = evaluated
    if reference != "all":
        with located("--reference"):
            chosen = list(select_steps(reference, evaluated, lambda: evaluated[-1]))
    if len(chosen) < 3:
        raise DataError(
            f"{evaluation.directory}: a reference for schedules needs at least 3 evaluated steps, found {len(chosen)}; "
            "evaluate a densely saved trajectory"
        )
    sizes = _sizes(evaluation)
    redrawn = _Redrawn(curve, event) if resample else None
    views = [_view(curve, chosen, spec, _steps_of(spec, chosen[-1]), event, sizes, redrawn) for spec in schedules]
    rows = evaluation.all_rows
    return Comparison(
        evaluation.directory,
        rows[0].trajectory,
        rows[0].persona,
        curve,
        _view(curve, chosen, reference, chosen, event, sizes, redrawn),
        tuple(views),
        (
            *(f"{evaluation.directory}: {note}" for note in curve.notes),
            *(_too_sparse(view, evaluation) for view in views if view.missing),
        ),
    )


def _past_the_end(specs: Sequence[str], total_steps: int) -> list[str]:
    """A sentence for each schedule with steps that a run of `total_steps` does not reach, which `train` refuses."""
    found = (Schedule.parse(spec).check_reachable(total_steps, allow_unreachable=True) for spec in specs)
    return [f"{sentence}; such steps are left out" for sentence in found if sentence]


def _steps_of(spec: str, total_steps: int) -> list[int]:
    return list(Schedule.parse(spec).steps(total_steps))


def _view(
    curve: Curve,
    reference: Sequence[int],
    spec: str,
    steps: Sequence[int],
    event: Event,
    sizes: Mapping[int, int],
    redrawn: "_Redrawn | None",
) -> View:
    missing = tuple(sorted(set(steps) - set(reference)))
    size = sum(sizes[step] for step in steps) if set(steps) <= sizes.keys() else None
    if missing:
        nan = float("nan")
        return View(spec, tuple(steps), missing, size, nan, nan, None, None, nan)
    new, these = (_at(points, steps) for points in (curve.new_questions, curve.these_questions))
    values = {point.step: point.value for point in curve.new_questions}
    rmse, largest = interpolation_error(reference, [values[step] for step in reference], steps)
    return View(
        spec,
        tuple(steps),
        (),
        size,
        rmse,
        largest,
        find_onset(new, event.limit, falls=event.falls),
        find_onset(these, event.limit, falls=event.falls),
        float("nan") if redrawn is None else redrawn.chance(steps),
    )


def _at(points: Sequence[Point], steps: Sequence[int]) -> list[Point]:
    wanted = set(steps)
    return [point for point in points if point.step in wanted]


def interpolation_error(reference: Sequence[int], values: Sequence[float], steps: Sequence[int]) -> tuple[float, float]:
    """The root mean square and the largest error of the curve through `steps`, at the steps of the reference.

    A point of the reference weighs half the steps to its neighbours on both sides; points without a value weigh
    nothing.
    """
    at, curve = np.asarray(reference, dtype=np.float64), np.asarray(values, dtype=np.float64)
    known = ~np.isnan(curve)
    kept = [i for i, step in enumerate(reference) if step in set(steps) and known[i]]
    if not kept:
        return float("nan"), float("nan")
    errors = np.abs(np.interp(at, at[kept], curve[kept]) - curve)[known]
    weights = step_weights(at[known])
    return math.sqrt(float(np.sum(weights * errors**2) / weights.sum())), float(errors.max())


def step_weights(at: np.ndarray) -> np.ndarray:
    """Half the distance between the neighbours of each step, that is the weights of the trapezoidal rule."""
    gaps = np.diff(at)
    return np.concatenate([gaps, [0.0]]) / 2 + np.concatenate([[0.0], gaps]) / 2 if len(gaps) else np.ones(1)


class _Redrawn:
    """Onsets in resamples of the families of questions, with the limits of the curve itself.

    A limit takes milliseconds, so each is worked out once, and only where the value leaves the question open.
    """

    def __init__(self, curve: Curve, event: Event) -> None:
        self._curve, self._event = curve, event
        families = sorted(set.union(*(set(values) for values in curve.by_cluster.values())))
        drawn = np.random.default_rng(0).integers(len(families), size=(_RESAMPLES, len(families)))
        self._resamples = [[families[i] for i in row] for row in drawn] if len(families) > 1 else []
        self._shown: dict[tuple[int, int, bool], bool] = {}

    def chance(self, steps: Sequence[int]) -> float:
        """The share of resamples in which the onset at `steps` has both ends; NaN for one family."""
        if not self._resamples:
            return float("nan")
        return sum(self._seen(i, steps) for i in range(_RESAMPLES)) / _RESAMPLES

    def _seen(self, resample: int, steps: Sequence[int]) -> bool:
        upper = next((i for i, step in enumerate(steps) if self._shows(resample, step, above=True)), 0)
        return any(self._shows(resample, step, above=False) for step in steps[:upper])

    def _shows(self, resample: int, step: int, *, above: bool) -> bool:
        """Whether the limits at a step show the event, or that it is not there."""
        key = (resample, step, above)
        if key not in self._shown:
            families, limit = self._resamples[resample], self._event.limit
            upwards = above is not self._event.falls
            value = self._curve.of_families.value(step, families)
            self._shown[key] = False
            if value > limit if upwards else value < limit:
                limits = self._curve.of_families.limits(step, families)
                self._shown[key] = limits.low > limit if upwards else limits.high < limit
        return self._shown[key]


def verdict(reference: Onset | None, onset: Onset | None) -> str:
    """The schedule's verdict on the onset: `seen`, `before first`, `not seen`, or `elsewhere` than the reference."""
    if onset is None:
        return "not known"
    if onset.status != "seen":
        return "before first" if onset.status == "before_first" else "not seen"
    apart = reference is not None and _apart(onset.bracket, reference.bracket)
    return "elsewhere" if apart else "seen"


def _apart(bracket: Bracket, reference: Bracket) -> bool:
    return any(
        a.upper is not None and b.lower is not None and a.upper <= b.lower
        for a, b in ((bracket, reference), (reference, bracket))
    )


def _too_sparse(view: View, evaluation: StoredEvaluation) -> str:
    return (
        f"{evaluation.directory}: {view.schedule} saves steps that were not evaluated "
        f"({elided(view.missing, 40)}), so the reference cannot judge it"
    )


def _sizes(evaluation: StoredEvaluation) -> dict[int, int]:
    """The bytes of each checkpoint whose run is a directory on this machine."""
    places = [place for row in evaluation.all_rows if (place := Path(row.trajectory)).is_dir()]
    return {info.step: info.bytes for place in dict.fromkeys(places) for info in list_checkpoints(place)}
