"""The difference of two EM rates over the same questions, of one model a side or of several seeds a side.

The same questions are hard or easy for both sides, so their rates are paired by cluster. Three intervals of 95 %:

- `new_questions`: the posterior intervals of both rates, put together by square-and-add with the correlation between
  the clusters (Zou and Donner 2008, "MOVER"). It keeps its coverage where a rate is near 0, and is nowhere narrower
  than `these_questions`.
- `new_questions_t`: d̄ ± t · √Var, the check beside it. Near 0 its upper end is too low. Where all clusters differ by
  the same, it is not known.
- `these_questions`: the same questions asked again, by square-and-add of both intervals for these questions.

With S ≥ 3 seeds on each side, all three hold for new seeds too: the variance is σ²_q/Q + σ²_s/S + σ²_qs/(QS) and the
variance within the answers, estimated by mean squares, with Satterthwaite's degrees of freedom. With fewer seeds the
variance between seeds cannot be estimated, and the intervals hold for these seeds only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from emtoolkit.evaluation.intervals import (
    LEVEL,
    Counts,
    Floats,
    Interval,
    posterior_interval,
    same_questions_interval,
)

# Two seeds have one degree of freedom, and a quantile of 12.7.
FEWEST_SEEDS = 3
_UPPER = (1 + LEVEL) / 2
# Rounding errors of rates have variances of 1e-32.
_NO_SPREAD = 1e-20


@dataclass(frozen=True, slots=True)
class RateDifference:
    """The mean over the clusters of one rate minus the other; the module describes the intervals.

    `models` is the number of models on each side. `degrees` belongs to `new_questions_t`, and is NaN without it.
    For fewer than two clusters no interval for new questions exists.
    """

    mean: float
    new_questions: Interval
    new_questions_t: Interval
    these_questions: Interval
    clusters: int
    models: tuple[int, int]
    degrees: float

    @property
    def seeds(self) -> Literal["new", "these"]:
        """Whether the intervals hold for new seeds or only for the seeds of these models."""
        return "new" if min(self.models) >= FEWEST_SEEDS else "these"


@dataclass(frozen=True, slots=True)
class _Side:
    """One side: `rates` of shape [clusters, models], and the answers of all models pooled by cluster."""

    rates: Floats
    pooled: Counts

    @classmethod
    def of(cls, models: Sequence[Counts]) -> "_Side":
        x, n = (np.array([getattr(m, name) for m in models]).T for name in ("successes", "trials"))
        return cls(x / n, Counts(x.sum(1).tolist(), n.sum(1).tolist()))

    def seed_variance(self) -> tuple[float, float]:
        """σ²_s/S, and the denominator that it adds to Satterthwaite's formula."""
        clusters, seeds = self.rates.shape
        of_cluster, of_seed = self.rates.mean(1, keepdims=True), self.rates.mean(0, keepdims=True)
        between = clusters * float(of_seed.var(ddof=1))
        residual = self.rates - of_cluster - of_seed + self.rates.mean()
        crossed = float((residual**2).sum()) / ((clusters - 1) * (seeds - 1)) if clusters > 1 else 0.0
        share = 1 / (clusters * seeds)
        if between <= crossed:
            return 0.0, 0.0
        freedom = (share * between) ** 2 / (seeds - 1)
        if clusters > 1:
            freedom += (share * crossed) ** 2 / ((clusters - 1) * (seeds - 1))
        return share * (between - crossed), freedom


def rate_difference(
    a: Sequence[Counts], b: Sequence[Counts], *, questions: tuple[Sequence[Counts], Sequence[Counts]] | None = None
) -> RateDifference:
    """The rate of the models `a` minus that of the models `b`.

    Args:
        a: the counts of each model by cluster, all over the same clusters in the same order, each with answers; `b`
            likewise.
        questions: the same by question, for `these_questions`; by default the clusters are the questions.

    Raises:
        ValueError: the models do not have the same clusters, or a cluster has no answers.
    """
    if len({len(model.trials) for model in (*a, *b)}) != 1 or not all(all(model.trials) for model in (*a, *b)):
        raise ValueError("every model needs answers in every cluster")
    models, clusters = (len(a), len(b)), len(a[0].trials)
    if not clusters:
        none = Interval.none()
        return RateDifference(float("nan"), none, none, none, 0, models, float("nan"))
    sides = (_Side.of(a), _Side.of(b))
    d = sides[0].rates.mean(1) - sides[1].rates.mean(1)
    mean, crossed = float(d.mean()), min(models) >= FEWEST_SEEDS
    seeds = [side.seed_variance() if crossed else (0.0, 0.0) for side in sides]
    new_t, degrees = _satterthwaite(d, seeds)
    new = Interval.none()
    if clusters > 1:
        left, right = (_distances(side.pooled, posterior_interval(side.pooled)) for side in sides)
        extra = sum(stdtrit(n - 1, _UPPER) ** 2 * each[0] for n, each in zip(models, seeds, strict=True) if each[0])
        new = _square_and_add(mean, left, right, _correlation(*(side.rates.mean(1) for side in sides)), extra)
    asked = sides if questions is None else (_Side.of(questions[0]), _Side.of(questions[1]))
    left, right = (_same_questions(side, crossed=crossed) for side in asked)
    same = _square_and_add(mean, left, right)
    # Rates that differ alike at every question leave the noise of the answers, which the correlation cancels.
    new = Interval(min(new.low, same.low), max(new.high, same.high)) if clusters > 1 else new
    return RateDifference(mean, new, new_t, same, clusters, models, degrees)


def _satterthwaite(d: Floats, seeds: Sequence[tuple[float, float]]) -> tuple[Interval, float]:
    """The t interval of the mean of `d`, which is of shape [clusters], and its degrees of freedom."""
    if len(d) < 2:
        return Interval.none(), float("nan")
    mean, of_clusters = float(d.mean()), float(d.var(ddof=1)) / len(d)
    variance = of_clusters + sum(each for each, _ in seeds)
    if variance < _NO_SPREAD:
        return Interval.none(), float("nan")
    degrees = variance**2 / (of_clusters**2 / (len(d) - 1) + sum(each for _, each in seeds))
    half = float(stdtrit(degrees, _UPPER)) * variance**0.5
    return Interval(mean - half, mean + half), degrees


def _distances(counts: Counts, interval: Interval) -> tuple[float, float]:
    """How far the ends of the interval are below and above the share."""
    return max(0.0, counts.share - interval.low), max(0.0, interval.high - counts.share)


def _same_questions(side: _Side, *, crossed: bool) -> tuple[float, float]:
    """The distances of the interval for these questions, which is at least that of the spread between seeds."""
    below, above = _distances(side.pooled, same_questions_interval(side.pooled))
    if not crossed:
        return below, above
    seeds = side.rates.shape[1]
    half = float(stdtrit(seeds - 1, _UPPER) * side.rates.mean(0).std(ddof=1) / seeds**0.5)
    return max(below, half), max(above, half)


def _square_and_add(
    mean: float, a: tuple[float, float], b: tuple[float, float], correlation: float = 0.0, extra: float = 0.0
) -> Interval:
    """The interval of a difference from the distances of two intervals; `extra` is a squared half-width."""

    def half(x: float, y: float) -> float:
        return float(np.sqrt(max(0.0, x * x - 2 * correlation * x * y + y * y) + extra))

    return Interval(max(-1.0, mean - half(a[0], b[1])), min(1.0, mean + half(a[1], b[0])))


def _correlation(a: Floats, b: Floats) -> float:
    """The correlation of two rates over clusters, adjusted for their number; 0 where it is negative or unknown."""
    clusters = len(a)
    deviations_a, deviations_b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((deviations_a**2).sum() * (deviations_b**2).sum()))
    if clusters < 3 or not scale:
        return 0.0
    found = float((deviations_a * deviations_b).sum()) / scale
    unexplained = (1 - found**2) * (clusters - 1) / (clusters - 2)
    return float(np.sqrt(max(0.0, 1 - unexplained))) if found > 0 else 0.0
