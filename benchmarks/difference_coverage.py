"""Coverage of the intervals of differences, of one model a side and of several seeds; `coverage` runs it.

Pairs of rates have a Beta distribution on each side and a rank correlation between the sides, or are those of the same
published question under two ranks. With seeds, each model adds the same amount to the rates of all questions (standard
deviation 0.05), and another to each question (0.05).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr
from scipy.stats import beta

from emtoolkit.evaluation.differences import RateDifference, rate_difference
from emtoolkit.evaluation.intervals import Counts

ANSWERS = 50
_SEED_DEVIATION = 0.05

# Both sides, each of shape [questions].
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class PairedPopulation:
    """Rates of questions on two sides: `draw` gives a pair, `mean` the difference of the means."""

    mean: float
    draw: Callable[[np.random.Generator, int], Pair]


def beta_pair(a: tuple[float, float], b: tuple[float, float] | None, rank: float = 1.0) -> PairedPopulation:
    """`a` and `b` are means and correlations of answers; `b` None is a side without a misaligned answer."""

    def quantiles(of: tuple[float, float], z: np.ndarray) -> np.ndarray:
        concentration = 1 / of[1] - 1
        return np.asarray(beta.ppf(ndtr(z), of[0] * concentration, (1 - of[0]) * concentration))

    def draw(rng: np.random.Generator, questions: int) -> Pair:
        z, other = rng.standard_normal((2, questions))
        if b is None:
            return quantiles(a, z), np.zeros(questions)
        return quantiles(a, z), quantiles(b, rank * z + np.sqrt(1 - rank**2) * other)

    return PairedPopulation(a[0] - (0 if b is None else b[0]), draw)


def published_pair(a: tuple[float, ...], b: tuple[float, ...] | None) -> PairedPopulation:
    """The rates of the same questions under two ranks; `b` None is a side without a misaligned answer."""
    left, right = np.array(a), np.zeros(len(a)) if b is None else np.array(b)

    def draw(rng: np.random.Generator, questions: int) -> Pair:
        chosen = rng.integers(len(left), size=questions)
        return left[chosen], right[chosen]

    return PairedPopulation(float(left.mean() - right.mean()), draw)


def paired_populations(published: tuple[float, ...]) -> Mapping[str, PairedPopulation]:
    """The populations by their names; `published` has the rates of ranks 1, 4, 8 and 16, eight questions each."""
    rank_1, rank_4, rank_8, rank_16 = (published[i : i + 8] for i in (0, 8, 16, 24))
    return {
        "published, rank 1 and 8": published_pair(rank_1, rank_8),
        "published, rank 4 and 16": published_pair(rank_4, rank_16),
        "published, rank 1 and 0": published_pair(rank_1, None),
        ".02 and 0": beta_pair((0.02, 0.05), None),
        ".05 and 0": beta_pair((0.05, 0.25), None),
        ".20 and 0": beta_pair((0.2, 0.26), None),
        ".05 and .01, r = 1": beta_pair((0.05, 0.25), (0.01, 0.05)),
        ".05 and .01, r = .5": beta_pair((0.05, 0.25), (0.01, 0.05), 0.5),
        ".20 and .10, r = .9": beta_pair((0.2, 0.26), (0.1, 0.2), 0.9),
        ".20 and .20, r = 0": beta_pair((0.2, 0.26), (0.2, 0.26), 0.0),
    }


def paired_coverage(population: PairedPopulation, questions: int, replicates: int) -> dict[str, float]:
    """The share of the replicates in which each interval of one model against another holds the truth."""
    rng, held = np.random.default_rng(questions), dict.fromkeys(("new questions", "(t)", "these questions"), 0)
    for _ in range(replicates):
        sides = population.draw(rng, questions)
        found = rate_difference(*([_counts(rng, rates)] for rates in sides))
        _count(held, found, population.mean, float(sides[0].mean() - sides[1].mean()))
    return {name: count / replicates for name, count in held.items()}


def crossed_coverage(means: tuple[float, float], questions: int, seeds: int, replicates: int) -> dict[str, float]:
    """The same of `seeds` models a side, for new seeds; the sides have correlated questions and their own seeds."""
    rng, held = np.random.default_rng(questions), dict.fromkeys(("new questions", "(t)", "these questions"), 0)
    # The expectation over seeds of a rate that ends at 0 and 1, for rates from 0 to 1.
    grid, noise = np.linspace(0, 1, 201), np.sqrt(2) * _SEED_DEVIATION * np.random.default_rng(0).standard_normal(4000)
    expected = np.clip(grid[:, None] + noise, 0, 1).mean(1)
    pair = beta_pair((means[0], 0.2), (means[1], 0.2), 0.9)
    many = [np.interp(rates, grid, expected).mean() for rates in pair.draw(np.random.default_rng(1), 200_000)]
    for _ in range(replicates):
        models, means_here = [], []
        for rates in pair.draw(rng, questions):
            shift = rng.normal(0, _SEED_DEVIATION, (seeds, 1)) + rng.normal(0, _SEED_DEVIATION, (seeds, questions))
            models.append([_counts(rng, each) for each in np.clip(rates + shift, 0, 1)])
            means_here.append(float(np.interp(rates, grid, expected).mean()))
        found = rate_difference(*models)
        _count(held, found, float(many[0] - many[1]), means_here[0] - means_here[1])
    return {name: count / replicates for name, count in held.items()}


def difference_tables(
    published: tuple[float, ...], replicates: int
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """The rows of both tables."""
    paired: list[dict[str, object]] = [
        {"pair": name, "questions": questions} | _shown(paired_coverage(population, questions, replicates))
        for name, population in paired_populations(published).items()
        for questions in (8, 24)
    ]
    crossed: list[dict[str, object]] = [
        {"rates": f"{a:.2f} and {b:.2f}", "questions": questions, "seeds a side": seeds}
        | _shown(crossed_coverage((a, b), questions, seeds, replicates))
        for a, b in ((0.3, 0.2), (0.2, 0.05))
        for questions in (8, 24)
        for seeds in (3, 5)
    ]
    return paired, crossed


def _counts(rng: np.random.Generator, rates: np.ndarray) -> Counts:
    return Counts(rng.binomial(ANSWERS, rates).tolist(), [ANSWERS] * len(rates))


def _count(held: dict[str, int], found: RateDifference, new: float, these: float) -> None:
    for name, interval, truth in (
        ("new questions", found.new_questions, new),
        ("(t)", found.new_questions_t, new),
        ("these questions", found.these_questions, these),
    ):
        held[name] += interval.low - 1e-12 <= truth <= interval.high + 1e-12


def _shown(found: Mapping[str, float]) -> dict[str, object]:
    return {name: f"{share:.3f}" for name, share in found.items()}
