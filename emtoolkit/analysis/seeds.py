"""The distribution of an onset over seeds: Turnbull's estimator of interval-censored times.

B. W. Turnbull, The empirical distribution function with arbitrarily grouped, censored and truncated data, Journal of
the Royal Statistical Society B 38 (1976). Each seed says only that its onset is in (lower, upper].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from emtoolkit.analysis.onset import Bracket

_TOLERANCE, _ROUNDS = 1e-10, 100_000


@dataclass(frozen=True, slots=True)
class Mass:
    """The probability that the onset is in `bracket`; where in the bracket is not known."""

    bracket: Bracket
    probability: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """Turnbull's estimate over several seeds, and the bracket of its median."""

    masses: tuple[Mass, ...]
    median: Bracket

    @classmethod
    def of(cls, brackets: Sequence[Bracket]) -> "Distribution":
        """The distribution of the onsets in `brackets`, one for each seed."""
        masses = turnbull(brackets)
        return cls(masses, median(masses))


def turnbull(brackets: Sequence[Bracket]) -> tuple[Mass, ...]:
    """The maximum of the likelihood of `brackets`, in the order of the steps; brackets without mass are left out.

    It is found by self-consistency from equal masses, so that the result does not depend on the order of the seeds.

    Raises:
        ValueError: a bracket is empty or there is none.
    """
    ends = [_ends(bracket) for bracket in brackets]
    if not ends or any(lower >= upper for lower, upper in ends):
        raise ValueError(f"brackets ({', '.join(map(str, brackets))}) must not be empty")
    cells = _innermost(ends)
    inside = np.array([[lower <= left and right <= upper for left, right in cells] for lower, upper in ends], float)
    mass = np.full(len(cells), 1 / len(cells))
    for _ in range(_ROUNDS):
        shares = inside * mass
        updated = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
        converged = np.abs(updated - mass).max() < _TOLERANCE
        mass = updated
        if converged:
            break
    kept = [(cell, float(share)) for cell, share in zip(cells, mass, strict=True) if share > math.sqrt(_TOLERANCE)]
    return tuple(Mass(Bracket(_step(left), _step(right)), share) for (left, right), share in kept)


def median(masses: Sequence[Mass]) -> Bracket:
    """The bracket of the median: where the distribution function reaches one half, up to where it exceeds it."""
    total, lower = 0.0, None
    reached = False
    for mass in masses:
        total += mass.probability
        if not reached and total >= 0.5 - 1e-6:
            lower, reached = mass.bracket.lower, True
        if total > 0.5 + 1e-6:
            return Bracket(lower, mass.bracket.upper)
    return Bracket(lower, None)


def _innermost(ends: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The intervals (left, right] that can have mass: a lower end directly followed by an upper end."""
    # At one step an upper end, which is inside its bracket, comes before a lower end, which is not.
    points = sorted({(upper, 0) for _, upper in ends} | {(lower, 1) for lower, _ in ends})
    return [(left, right) for (left, is_lower), (right, follows) in pairwise(points) if is_lower and not follows]


def _ends(bracket: Bracket) -> tuple[float, float]:
    lower = -math.inf if bracket.lower is None else float(bracket.lower)
    return lower, math.inf if bracket.upper is None else float(bracket.upper)


def _step(end: float) -> int | None:
    return int(end) if math.isfinite(end) else None
