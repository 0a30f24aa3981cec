"""How often each 95 % interval holds the true rate, in simulation.

    python -m benchmarks.coverage [--replicates 1000] [--part rates|differences] [--json FILE]

A population is a distribution of rates over questions: a Beta distribution with a mean and a correlation between two
answers to one question, the published rates of eight questions, or many cold questions with one hot one in eight. Each
replicate draws the questions and 50 answers to each. `new questions` holds the mean of the population, `these
questions` the mean rate of the questions that were drawn. The bar: the posterior covers 93 to 98 % of the Beta and the
published populations at 8, 16, 24 and 50 questions.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.difference_coverage import difference_tables
from benchmarks.subject import report
from emtoolkit.evaluation.intervals import (
    Counts,
    Interval,
    logit_t_interval,
    posterior_interval,
    same_questions_interval,
)

ANSWERS, QUESTIONS = 50, (8, 16, 24, 50)
# Misaligned shares of the eight questions in the published answers of Qwen2.5-14B with rank 1, 4, 8 and 16.
_PUBLISHED = (
    *(0.00, 0.24, 0.66, 0.04, 0.42, 0.58, 0.04, 0.22),
    *(0.02, 0.10, 0.70, 0.00, 0.38, 0.46, 0.14, 0.14),
    *(0.02, 0.08, 0.46, 0.08, 0.34, 0.40, 0.02, 0.08),
    *(0.02, 0.12, 0.64, 0.06, 0.32, 0.52, 0.02, 0.12),
)
_BAR = (0.93, 0.98)

Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True, slots=True)
class Population:
    """Rates of questions: `draw` gives an array of shape [questions]. The bar holds where `usual`."""

    mean: float
    draw: Draw
    usual: bool = True


def beta(mean: float, correlation: float) -> Population:
    concentration = 1 / correlation - 1
    return Population(mean, lambda rng, n: rng.beta(mean * concentration, (1 - mean) * concentration, n))


POPULATIONS: Mapping[str, Population] = {
    "published": Population(float(np.mean(_PUBLISHED)), lambda rng, n: rng.choice(_PUBLISHED, n)),
    "Beta .02, correlation .05": beta(0.02, 0.05),
    "Beta .05, correlation .25": beta(0.05, 0.25),
    "Beta .20, correlation .26": beta(0.20, 0.26),
    "Beta .50, correlation .20": beta(0.50, 0.20),
    "Beta .97, correlation .10": beta(0.97, 0.10),
    "one hot question in eight": Population(0.1, lambda rng, n: np.where(rng.random(n) < 1 / 8, 0.8, 0.0), usual=False),
}


def bootstrap(counts: Counts, rng: np.random.Generator) -> Interval:
    """The percentile bootstrap over questions, which many tools use."""
    x = np.asarray(counts.successes, dtype=np.float64)
    shares = x[rng.integers(len(x), size=(500, len(x)))].mean(axis=1) / ANSWERS
    low, high = np.quantile(shares, (0.025, 0.975))
    return Interval(float(low), float(high))


def coverage(population: Population, questions: int, replicates: int, seed: int) -> dict[str, float]:
    """The share of the replicates in which each interval holds the truth."""
    rng = np.random.default_rng(seed)
    held = dict.fromkeys(("posterior", "logit-t", "bootstrap", "these questions"), 0)
    for _ in range(replicates):
        rates = population.draw(rng, questions)
        counts = Counts(rng.binomial(ANSWERS, rates).tolist(), [ANSWERS] * questions)
        for name, interval, truth in (
            ("posterior", posterior_interval(counts), population.mean),
            ("logit-t", logit_t_interval(counts), population.mean),
            ("bootstrap", bootstrap(counts, rng), population.mean),
            ("these questions", same_questions_interval(counts), float(rates.mean())),
        ):
            held[name] += interval.low <= truth <= interval.high
    return {name: count / replicates for name, count in held.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--part", choices=("rates", "differences"))
    parser.add_argument("--json")
    options = parser.parse_args()
    outside = [] if options.part == "differences" else rates(options)
    if options.part != "rates":
        differences(options)
    sys.exit(bool(outside))


def differences(options: argparse.Namespace) -> None:
    replicates = max(1, options.replicates // 2)
    paired, crossed = difference_tables(_PUBLISHED, replicates)
    report(f"Coverage of 95 % intervals of differences, {replicates} replicates", paired, None)
    report(f"The same, crossed with seeds, {replicates} replicates", crossed, None)


def rates(options: argparse.Namespace) -> list[str]:
    rows, outside = [], []
    for name, population in POPULATIONS.items():
        for questions in QUESTIONS:
            found = coverage(population, questions, options.replicates, seed=questions)
            rows.append({"population": name, "questions": questions} | {key: f"{x:.3f}" for key, x in found.items()})
            if population.usual and not _BAR[0] <= found["posterior"] <= _BAR[1]:
                outside.append(f"{name}, {questions} questions: {found['posterior']:.3f}")
    report(f"Coverage of 95 % intervals, {options.replicates} replicates", rows, options.json)
    for sentence in outside:
        print(f"outside {_BAR[0]:.2f} to {_BAR[1]:.2f}: {sentence}")
    return outside


if __name__ == "__main__":
    main()
