"""95 % intervals of a proportion over questions, for new questions and for these questions.

Answers to one question are correlated, so the interval depends on what a second experiment would change:

- `new_questions`: it asks other questions of the same kind. `posterior_interval` is the default, and `logit_t_interval`
  the frequentist check beside it. Both work on clusters: questions, or families of questions.
- `these_questions`: it asks the same questions again. `same_questions_interval` is much narrower.

The coverage of each in simulation is in the documentation; `python -m benchmarks.coverage` makes the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, ndtri, stdtrit

LEVEL = 0.95
_TAIL = (1 - LEVEL) / 2
# The prior of the concentration: a median of 4 is a correlation of 0.2 between two answers to one question, and 0.20 to
# 0.32 were measured on published answers. The grid covers 3.5 standard deviations on either side.
_MEDIAN_CONCENTRATION, _LOG_SPREAD, _REACH = 4.0, 1.2, 3.5
_MEAN_POINTS, _CONCENTRATION_POINTS = 400, 41
_REPLICATES_AT_A_TIME = 100

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """The ends of a 95 % interval; both are NaN where the data give none."""

    low: float
    high: float

    @classmethod
    def none(cls) -> "Interval":
        """The interval of no data."""
        return cls(float("nan"), float("nan"))


@dataclass(frozen=True, slots=True)
class Counts:
    """`successes[i]` of `trials[i]` answers, for each question or each cluster of questions."""

    successes: Sequence[int]
    trials: Sequence[int]

    def __post_init__(self) -> None:
        if len(self.successes) != len(self.trials):
            raise ValueError(f"{len(self.successes)} successes and {len(self.trials)} trials")
        for x, n in zip(self.successes, self.trials, strict=True):
            if not 0 <= x <= n:
                raise ValueError(f"{x} successes in {n} trials")

    @property
    def share(self) -> float:
        """All successes divided by all trials; NaN without a trial."""
        return sum(self.successes) / sum(self.trials) if sum(self.trials) else float("nan")

    def arrays(self) -> tuple[Floats, Floats]:
        """Successes and trials where there are trials, each of shape [questions]."""
        kept = [(x, n) for x, n in zip(self.successes, self.trials, strict=True) if n]
        both = np.array(kept, dtype=np.float64).reshape(-1, 2)
        return both[:, 0], both[:, 1]


def posterior_interval(counts: Counts) -> Interval:
    """The equal-tailed interval of the mean rate μ of the questions that could have been asked.

    The model is x_q ~ BetaBinomial(n_q, μκ, (1-μ)κ) with μ ~ Beta(1/2, 1/2) and ln κ ~ N(ln 4, 1.2²), on a fixed grid,
    so that the same counts give the same interval. An end is 0 or 1 where all answers agree.
    """
    x, n = counts.arrays()
    if not len(x):
        return Interval.none()
    _, _, log_prior, prior_norm = _grid()
    log_density = log_prior + np.zeros_like(prior_norm)
    pairs, repeats = np.unique(np.stack([x, n], axis=1), axis=0, return_counts=True)
    for (successes, trials), count in zip(pairs, repeats, strict=True):
        log_density += count * _log_likelihood(float(successes), float(trials))
    low, high = _posterior_quantiles(log_density)
    return Interval(0.0 if x.sum() == 0 else low, 1.0 if x.sum() == n.sum() else high)


def posterior_intervals(successes: NDArray[np.int64], trials: Sequence[int]) -> Floats:
    """`posterior_interval` of many replicates at once.

    Args:
        successes: of shape [replicates, questions].
        trials: of shape [questions], each at least 1.

    Returns:
        The ends, of shape [replicates, 2].
    """
    alpha, beta, log_prior, prior_norm = _grid()
    ends = []
    n = np.broadcast_to(np.asarray(trials), successes.shape)
    for start in range(0, len(successes), _REPLICATES_AT_A_TIME):
        part = slice(start, start + _REPLICATES_AT_A_TIME)
        pairs, index = np.unique(
            np.stack([successes[part], n[part]], axis=-1).reshape(-1, 2), axis=0, return_inverse=True
        )
        index = index.reshape(successes[part].shape)
        repeats = np.stack([np.bincount(row, minlength=len(pairs)) for row in index]).astype(np.float64)
        table = np.stack([betaln(x + alpha, m - x + beta) - prior_norm for x, m in pairs])
        for row, x in zip(repeats, successes[part], strict=True):
            low, high = _posterior_quantiles(np.tensordot(row, table, 1) + log_prior)
            ends.append((0.0 if not x.any() else low, 1.0 if x.sum() == sum(trials) else high))
    return np.array(ends)


def _posterior_quantiles(log_density: Floats) -> tuple[float, float]:
    """Both ends from the log density on the grid."""
    density = np.exp(log_density - log_density.max()).sum(axis=1)
    cumulative = np.concatenate([[0.0], np.cumsum(density / density.sum())])
    angles = np.interp((_TAIL, 1 - _TAIL), cumulative, np.linspace(0, np.pi / 2, _MEAN_POINTS + 1))
    low, high = np.sin(angles) ** 2
    return float(low), float(high)


def logit_t_interval(counts: Counts) -> Interval:
    """The interval of the mean rate for new questions, on the logit scale with t(clusters - 1).

    The standard error is clustered, SE² = C/(C-1) · Σ_c(Σ_i(s_i - s̄))²/N² (Miller, arXiv 2411.00640, appendix A, with
    the correction C/(C-1)), the centre logit((Σx+½)/(N+1)), and SE_logit = SE/(p(1-p)). No interval for fewer than two
    clusters, or where all answers agree.
    """
    x, n = counts.arrays()
    clusters, total = len(x), n.sum()
    if clusters < 2 or x.sum() in (0, total):
        return Interval.none()
    p = x.sum() / total
    error = np.sqrt(clusters / (clusters - 1) * np.sum((x - n * p) ** 2)) / total
    return _around_logit(x.sum(), total, error, float(stdtrit(clusters - 1, 1 - _TAIL)))


def same_questions_interval(counts: Counts) -> Interval:
    """The interval of the rate if the same questions were answered again, on the logit scale with normal quantiles.

    SE² = Σ_q (n_q/N)² · p_q(1-p_q)/(n_q-1), which is Σ_q p_q(1-p_q)/(n_q-1)/Q² for equally many answers. A question
    with one answer has the variance of all answers. Where all answers of every question agree, the variance is that of
    all answers; where all answers agree, one end is 0 or 1 and the other is exact (Clopper and Pearson).
    """
    x, n = counts.arrays()
    total = n.sum()
    if not total:
        return Interval.none()
    if x.sum() == 0:
        return Interval(0.0, float(1 - _TAIL ** (1 / total)))
    if x.sum() == total:
        return Interval(float(_TAIL ** (1 / total)), 1.0)
    share = x.sum() / total
    p = np.where(n > 1, x / n, share)
    variance = float(np.sum((n / total) ** 2 * p * (1 - p) / np.maximum(n - 1, 1)))
    if not variance:
        variance = share * (1 - share) / total
    return _around_logit(x.sum(), total, np.sqrt(variance), float(ndtri(1 - _TAIL)))


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean difference of two rates over the same questions, with its interval for new questions."""

    mean: float
    interval: Interval
    questions: int

    @property
    def half_width(self) -> float:
        """Half the width of the interval."""
        return (self.interval.high - self.interval.low) / 2


def paired_difference(differences: Sequence[float]) -> Difference:
    """The mean d̄ of the differences of single questions, d̄ ± t(Q-1) · s_d/√Q.

    A bootstrap over eight questions covers 87 to 89 % instead of 95 %. NaN for fewer than two questions.
    """
    d = np.asarray(differences, dtype=np.float64)
    if not len(d):
        return Difference(float("nan"), Interval.none(), 0)
    mean = float(d.mean())
    if len(d) < 2:
        return Difference(mean, Interval.none(), len(d))
    half = float(stdtrit(len(d) - 1, 1 - _TAIL) * d.std(ddof=1) / np.sqrt(len(d)))
    return Difference(mean, Interval(mean - half, mean + half), len(d))


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of a value over questions, with its interval for new questions."""

    value: float
    interval: Interval
    questions: int

    @property
    def half_width(self) -> float:
        """Half the width of the interval."""
        return (self.interval.high - self.interval.low) / 2


def clustered_mean(values: Sequence[float], clusters: Sequence[str]) -> Mean:
    """The mean v̄ of one value for each question, v̄ ± t(C-1) · SE; `clusters` names the family of each question.

    SE² = C/(C-1) · Σ_c(Σ_i(v_i - v̄))²/N² (Miller, arXiv 2411.00640, appendix A, with the correction C/(C-1)), which is
    s²/Q where every question is a family of its own. No interval for fewer than two families, or where all values are
    equal: they say nothing about the spread over other questions.
    """
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values and {len(clusters)} clusters")
    v = np.asarray(values, dtype=np.float64)
    if not len(v):
        return Mean(float("nan"), Interval.none(), 0)
    mean = float(v.mean())
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(index, weights=v - mean)
    if len(sums) < 2 or v.min() == v.max():
        return Mean(mean, Interval.none(), len(v))
    error = np.sqrt(len(sums) / (len(sums) - 1) * np.sum(sums**2)) / len(v)
    half = float(stdtrit(len(sums) - 1, 1 - _TAIL) * error)
    return Mean(mean, Interval(mean - half, mean + half), len(v))


def _around_logit(successes: float, total: float, error: Any, quantile: float) -> Interval:
    centre = np.log((successes + 0.5) / (total - successes + 0.5))
    p = successes / total
    half = quantile * error / (p * (1 - p))
    low, high = 1 / (1 + np.exp(-(centre - half))), 1 / (1 + np.exp(-(centre + half)))
    return Interval(float(low), float(high))


@cache
def _grid() -> tuple[Floats, Floats, Floats, Floats]:
    """Both parameters of the Beta distribution, the log prior and the log of the Beta function, of shape [means,
    concentrations]; the log prior is of shape [concentrations].

    The means are sin²(θ) for equally spaced θ: the prior Beta(1/2, 1/2) is uniform in θ.
    """
    theta = (np.arange(_MEAN_POINTS) + 0.5) / _MEAN_POINTS * np.pi / 2
    mean = np.sin(theta)[:, None] ** 2
    deviations = np.linspace(-_REACH, _REACH, _CONCENTRATION_POINTS)
    concentration = np.exp(np.log(_MEDIAN_CONCENTRATION) + _LOG_SPREAD * deviations)
    alpha, beta = mean * concentration, (1 - mean) * concentration
    return alpha, beta, -(deviations**2) / 2, betaln(alpha, beta)


# The curve of an evaluation has few different counts and hundreds of intervals; each count has a table of 131 kB.
@lru_cache(maxsize=256)
def _log_likelihood(successes: float, trials: float) -> Floats:
    """The log likelihood of one cluster on the grid, without the binomial coefficient."""
    alpha, beta, _, prior_norm = _grid()
    return np.asarray(betaln(successes + alpha, trials - successes + beta) - prior_norm)
