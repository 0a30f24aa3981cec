"""The geometry of a path of weights, from the matrix of all inner products of its points.

Every function takes the steps, ascending and unevenly spaced or not, and the Gram matrix G of shape [T, T] in float64,
where G[s, t] = ⟨θ(s), θ(t)⟩. Squared distances below 1e-14 of the squared norms are rounding: the distance is 0.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# The sides of a local cosine, and a side and the window asked for, may differ by this share. The expected cosine of a
# random walk with drift depends on the window, so a change of spacing alone would look like a turn of the path.
TOLERANCE = 0.2
_ROUNDING = 1e-14


@dataclass(frozen=True, slots=True)
class LocalCosine:
    """The cosine between the ways to a step and from it, with the windows that were used, in steps.

    The value is cos(θ(s) - θ(s-before), θ(s+after) - θ(s)): 1 on a straight line, -1 where the path turns back. Some
    papers give one of the differences the opposite sign. `before` and `after` are None where there is no checkpoint.
    """

    value: float
    before: int | None
    after: int | None


@dataclass(frozen=True, slots=True)
class PrincipalComponents:
    """Coordinates of shape [T, k] on the principal components, and the share of the variance on each."""

    coordinates: Floats
    explained: tuple[float, ...]


def norms(gram: Floats) -> Floats:
    """‖θ(s)‖, of shape [T]."""
    return np.asarray(np.sqrt(np.maximum(np.diag(gram), 0)), dtype=np.float64)


def distance(gram: Floats, a: int, b: int) -> float:
    """‖θ(b) - θ(a)‖ of the points with the indices `a` and `b`."""
    scale = gram[a, a] + gram[b, b]
    squared = scale - 2 * gram[a, b]
    return float(np.sqrt(squared)) if squared > _ROUNDING * scale else 0.0


def usual_window(steps: Sequence[int]) -> int | None:
    """The commonest distance between two consecutive checkpoints, the shorter of two; None for a single checkpoint."""
    gaps = Counter(b - a for a, b in pairwise(steps))
    return min(gaps, key=lambda gap: (-gaps[gap], gap), default=None)


def local_cosines(steps: Sequence[int], gram: Floats, window: int) -> tuple[LocalCosine, ...]:
    """The local cosine at each step, over the checkpoints nearest to `window` steps before it and after it.

    The value is NaN where there is no checkpoint on one side, where the sides differ by more than 20 % of `before`,
    where `before` differs from `window` by more than 20 %, and where the path does not move on one side.
    """
    found = []
    for here, step in enumerate(steps):
        left, right = steps[:here], steps[here + 1 :]
        before = min((step - other for other in left), key=lambda k: abs(k - window), default=None)
        wanted = window if before is None else before
        after = min((other - step for other in right), key=lambda k: abs(k - wanted), default=None)
        usable = before is not None and after is not None and _near(before, window) and _near(after, before)
        value = float("nan")
        if usable and before is not None and after is not None:
            value = _cosine(gram, steps.index(step - before), here, steps.index(step + after))
        found.append(LocalCosine(value, before, after))
    return tuple(found)


def _near(length: int, reference: int) -> bool:
    return abs(length - reference) <= TOLERANCE * reference


def _cosine(gram: Floats, a: int, b: int, c: int) -> float:
    """cos(θ(b) - θ(a), θ(c) - θ(b)); NaN where one of them is zero."""
    before, after = distance(gram, a, b), distance(gram, b, c)
    if not before or not after:
        return float("nan")
    product = gram[b, c] - gram[b, b] - gram[a, c] + gram[a, b]
    return float(np.clip(product / (before * after), -1, 1))


def principal_components(gram: Floats, count: int = 3) -> PrincipalComponents:
    """The path on its `count` principal components; each checkpoint has the same weight, however dense the steps.

    The sign of a component is such that the last checkpoint is not below the first. A path that does not move has zero
    coordinates, and its explained shares are NaN.
    """
    size = len(gram)
    centring = np.eye(size) - 1 / size
    centred = centring @ gram @ centring
    values, vectors = np.linalg.eigh((centred + centred.T) / 2)
    floor = _ROUNDING * max(float(np.trace(gram)), 0.0)
    values = np.where(values > floor, values, 0.0)[::-1]
    coordinates = vectors[:, ::-1] * np.sqrt(values)
    coordinates *= np.where(coordinates[-1] < coordinates[0], -1.0, 1.0)
    kept, total = min(count, size), float(values.sum())
    explained = tuple(float(value / total) if total else float("nan") for value in values[:kept])
    return PrincipalComponents(coordinates[:, :kept], explained)
