"""When a curve crossed a threshold: the bracket of two steps, from the 95 % limits at each step alone.

With limits [L, U] at each step and the threshold c, the onset is in (lower, upper]: `lower` is the last step with U < c
before `upper`, and `upper` is the first step with L > c. Where no limit excludes the threshold, the bracket is wide; no
step is interpolated. The rule assumes that the curve rises once; a later U < c is a reversal, an event of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np

from emtoolkit.evaluation.intervals import Interval

# Two 95 % limits of normal values each reach over 1.96 standard deviations.
_REACH = 2 * 1.959964


@dataclass(frozen=True, slots=True)
class Point:
    """A value at one step with its 95 % limits, which are NaN where the value is not known."""

    step: int
    value: float
    limits: Interval

    def mirrored(self) -> "Point":
        """The point of the negative curve."""
        return replace(self, value=-self.value, limits=Interval(-self.limits.high, -self.limits.low))


@dataclass(frozen=True, slots=True)
class Bracket:
    """An event after step `lower` and not after `upper`; None where no step bounds it."""

    lower: int | None
    upper: int | None

    @property
    def width(self) -> int | None:
        """The steps between both ends; None where an end is open."""
        return None if self.lower is None or self.upper is None else self.upper - self.lower

    def __str__(self) -> str:
        left = "before the first checkpoint" if self.lower is None else str(self.lower)
        return f"({left}, {'not seen' if self.upper is None else self.upper}]"


@dataclass(frozen=True, slots=True)
class Fall:
    """A fall from the highest value: shown by the step `shown_at`, at the simultaneous 5 % level of all pairs of steps.

    The criterion is that of the studentized range: the difference of two values exceeds their half-widths by more than
    a factor that grows with the number of steps. `last` is the value at the end.
    """

    peak: Point
    shown_at: int
    last: Point


@dataclass(frozen=True, slots=True)
class Onset:
    """The onset of one curve: its bracket, what ends the search, and the events after it.

    `status` is `seen`; `before_first` where no step shows the curve below the threshold before `bracket.upper`; or
    `not_seen`, where `bracket.lower` is the last step that excludes the threshold. `last` and `furthest`, the
    highest value, are the evidence for `not_seen`. `undecided` are the steps whose limits hold the threshold.
    """

    status: Literal["seen", "before_first", "not_seen"]
    threshold: float
    bracket: Bracket
    first_step: int
    last: Point
    furthest: Point
    undecided: tuple[int, ...]
    reversal: Bracket | None = None
    fall: Fall | None = None


def find_onset(points: Sequence[Point], threshold: float, *, falls: bool = False) -> Onset:
    """The onset of `points`, which are in the order of their steps; with `falls` that of a fall below the threshold.

    A step whose value or limits are not known decides nothing.

    Raises:
        ValueError: there is no point, the steps are not ascending, or the threshold is not a number.
    """
    steps = [point.step for point in points]
    if not points or steps != sorted(set(steps)) or not math.isfinite(threshold):
        raise ValueError(f"an onset needs ascending steps and a threshold; got {steps} and {threshold}")
    if falls:
        return _as_fall(find_onset([point.mirrored() for point in points], -threshold))
    above = [point.step for point in points if point.limits.low > threshold]
    below = [point.step for point in points if point.limits.high < threshold]
    upper = min(above, default=None)
    lower = max((step for step in below if upper is None or step < upper), default=None)
    after = [] if upper is None else [point for point in points if point.step >= upper]
    known = [point for point in points if not math.isnan(point.value)] or list(points)
    return Onset(
        status="not_seen" if upper is None else "before_first" if lower is None else "seen",
        threshold=threshold,
        bracket=Bracket(lower, upper),
        first_step=steps[0],
        last=points[-1],
        furthest=max(known, key=lambda point: point.value),
        undecided=tuple(sorted(set(steps) - {*above, *below})),
        reversal=_reversal(above, [step for step in below if upper is not None and step > upper]),
        fall=_fall(after),
    )


def _as_fall(onset: Onset) -> Onset:
    """The onset of the mirrored curve in the values of the curve itself."""
    fall = onset.fall
    if fall is not None:
        fall = Fall(fall.peak.mirrored(), fall.shown_at, fall.last.mirrored())
    last, furthest = onset.last.mirrored(), onset.furthest.mirrored()
    return replace(onset, threshold=-onset.threshold, fall=fall, last=last, furthest=furthest)


def _reversal(above: Sequence[int], below_after: Sequence[int]) -> Bracket | None:
    if not below_after:
        return None
    first = min(below_after)
    return Bracket(max(step for step in above if step < first), first)


def _fall(points: Sequence[Point]) -> Fall | None:
    """The largest fall that is shown, from the highest value so far; none in a curve without uncertainty."""
    known = [point for point in points if not math.isnan(point.limits.low)]
    found: Fall | None = None
    largest, peak = 0.0, known[0] if known else None
    for point in known:
        if peak is None or point.value >= peak.value:
            peak = point
            continue
        drop = peak.value - point.value
        needed = (peak.value - peak.limits.low) + (point.limits.high - point.value)
        if needed > 0 and drop > _factor(len(known)) * needed and drop > largest:
            same = found is not None and found.peak == peak
            found = Fall(peak, found.shown_at if found is not None and same else point.step, known[-1])
            largest = drop
    return found


@cache
def _factor(steps: int) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(0.95, max(steps, 2), np.inf) / _REACH)


def order_of(first: Onset, second: Onset) -> Literal["first", "second", "not decidable"]:
    """Which of two onsets comes first; brackets that overlap do not decide it, nor do two that were not seen."""
    if _ends_before(first.bracket, second.bracket):
        return "first"
    return "second" if _ends_before(second.bracket, first.bracket) else "not decidable"


def _ends_before(earlier: Bracket, later: Bracket) -> bool:
    return earlier.upper is not None and later.lower is not None and earlier.upper <= later.lower


def chance_of_order(
    first: tuple[Sequence[int], np.ndarray, float],
    second: tuple[Sequence[int], np.ndarray, float],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> float:
    """The share of joint resamples of the questions in which the first event comes first; ties count one half.

    An event is its steps, its values of shape [steps, questions] on the same questions as the other event, and its
    threshold. In a resample it happens at the first step whose mean is above the threshold, if at any.

    Raises:
        ValueError: the events have different numbers of questions.
    """
    questions = first[1].shape[1]
    if second[1].shape[1] != questions:
        raise ValueError(f"{questions} and {second[1].shape[1]} questions; the order needs the same questions")
    drawn = np.random.default_rng(seed).integers(questions, size=(resamples, questions))
    a, b = (_first_steps(*event, drawn) for event in (first, second))
    return float(np.mean(a < b) + np.mean(a == b) / 2)


def _first_steps(steps: Sequence[int], values: np.ndarray, threshold: float, drawn: np.ndarray) -> np.ndarray:
    """For each resample the first step above the threshold, infinity where there is none."""
    means = np.stack([row[drawn].mean(axis=1) for row in values])
    above = means > threshold
    found = np.asarray(steps, dtype=np.float64)[above.argmax(axis=0)]
    return np.where(above.any(axis=0), found, np.inf)
