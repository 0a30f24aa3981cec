"""The precision of an evaluation, simulated before any answer is sampled.

The rates of questions are drawn from a Beta distribution with a mean and a correlation between two answers to one
question; 0.20 to 0.32 were measured on published answers. Each replicate draws questions and answers, and computes the
intervals that the evaluation will print. The rise is from a first step at which no answer is misaligned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emtoolkit.evaluation.intervals import (
    Counts,
    Floats,
    Interval,
    posterior_interval,
    posterior_intervals,
    same_questions_interval,
)
from emtoolkit.evaluation.questions import Question
from emtoolkit.evaluation.scored_files import question_families
from emtoolkit.progress import Progress, silent

CORRELATION = 0.2
# Below this number of questions, more questions narrow the interval far more than more answers.
FEW_QUESTIONS = 24
_REPLICATES, _SEED = 1000, 0
# More questions for the same number of answers, where the file has fewer.
_ALTERNATIVES = (24, 40, 50)


@dataclass(frozen=True, slots=True)
class Design:
    """The number of answers to each question, or to each family of questions whose answers resemble each other."""

    answers: tuple[int, ...]

    @classmethod
    def even(cls, questions: int, answers: int) -> "Design":
        """`answers` answers to each of `questions` questions."""
        return cls((answers,) * questions)

    @classmethod
    def of(cls, questions: Sequence[Question]) -> "Design":
        """The design of a question file; variants of one question count as one question."""
        families = question_families([question.id for question in questions])
        totals: dict[str, int] = {}
        for question in questions:
            family = families.get(question.id, question.id)
            totals[family] = totals.get(family, 0) + question.samples
        return cls(tuple(totals.values()))

    def alternatives(self) -> tuple["Design", ...]:
        """More questions, and fewer answers to each, for at most the same number of answers."""
        questions, total = len(self.answers), sum(self.answers)
        larger = [each for each in _ALTERNATIVES if each > questions] or [2 * questions]
        return tuple(Design.even(each, total // each) for each in larger if total >= each)


@dataclass(frozen=True, slots=True)
class Width:
    """Half the width of a 95 % interval in the middle replicate, and the share of replicates without an onset."""

    half_width: float
    no_onset: float


@dataclass(frozen=True, slots=True)
class Power:
    """The precision of one design at one checkpoint, for the EM rate and for its rise, and for both kinds of interval.

    An onset means that the lower end of the interval is above the threshold.
    """

    design: Design
    rate_new_questions: Width
    rate_these_questions: Width
    rise_new_questions: Width
    rise_these_questions: Width


@dataclass(frozen=True, slots=True)
class Detection:
    """The power of a design and of its alternatives, at a true rate and a threshold between 0 and 1."""

    threshold: float
    rate: float
    correlation: float
    power: Power
    alternatives: tuple[Power, ...]


def detection(
    design: Design,
    threshold: float,
    *,
    rate: float | None = None,
    correlation: float = CORRELATION,
    replicates: int = _REPLICATES,
    progress: Progress = silent,
) -> Detection:
    """The power of `design` to detect an EM rate above `threshold`; the same arguments give the same result.

    `rate` is the true rate, by default twice the threshold, or half-way to 1 where that is less.
    """
    true = min(2 * threshold, (1 + threshold) / 2) if rate is None else rate
    found = []
    designs = (design, *design.alternatives())
    for done, each in enumerate(designs):
        progress("simulating evaluations", done, len(designs))
        found.append(power(each, threshold, true, correlation=correlation, replicates=replicates))
    return Detection(threshold, true, correlation, found[0], tuple(found[1:]))


def power(
    design: Design, threshold: float, rate: float, *, correlation: float = CORRELATION, replicates: int = _REPLICATES
) -> Power:
    """The power of `design` at the true rate `rate`.

    Raises:
        ValueError: `rate`, `threshold` or `correlation` is not between 0 and 1, or the design has no answers.
    """
    if not (0 < threshold < 1 and 0 < rate < 1 and 0 < correlation < 1):
        raise ValueError("threshold, rate and correlation lie between 0 and 1")
    if not design.answers or not all(design.answers):
        raise ValueError("every question needs an answer")
    rng, concentration = np.random.default_rng(_SEED), 1 / correlation - 1
    shape = (replicates, len(design.answers))
    rates = rng.beta(rate * concentration, (1 - rate) * concentration, shape)
    successes = rng.binomial(np.array(design.answers), rates)
    new = posterior_intervals(successes, design.answers)
    counts = [Counts(row.tolist(), design.answers) for row in successes]
    these = np.array([_ends(same_questions_interval(each)) for each in counts])
    shares = successes.sum(1) / sum(design.answers)
    nothing = Counts([0] * len(design.answers), design.answers)
    return Power(
        design,
        _width(new, threshold),
        _width(these, threshold),
        _width(_rise(shares, new, posterior_interval(nothing)), threshold),
        _width(_rise(shares, these, same_questions_interval(nothing)), threshold),
    )


def _rise(shares: Floats, ends: Floats, first: Interval) -> Floats:
    """The intervals of the rise from a first step without a misaligned answer, as `differences` computes them."""
    low = shares - np.hypot(shares - ends[:, 0], first.high)
    return np.stack([low, ends[:, 1]], axis=1)


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def _width(ends: Floats, threshold: float) -> Width:
    """From intervals of shape [replicates, 2]; an interval that does not exist shows no onset."""
    onset = ends[:, 0] > threshold
    return Width(float(np.median(ends[:, 1] - ends[:, 0])) / 2, float(1 - onset.mean()))
