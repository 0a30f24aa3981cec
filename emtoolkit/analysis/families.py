"""A curve at one step if certain families of questions had been asked, as when the families are drawn again.

The limits are those for new questions of the curve itself: whoever draws every family once gets the curve's own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from emtoolkit.evaluation.differences import rate_difference
from emtoolkit.evaluation.intervals import Counts, Interval, clustered_mean, posterior_interval

# Successes and trials of each question, or of each family of questions.
Tally = Mapping[str, tuple[int, int]]


class OfFamilies(Protocol):
    """The value and the limits at a step for the named families, each as often as it is named."""

    def value(self, step: int, families: Sequence[str]) -> float:
        """The value, NaN where no family has one."""
        ...

    def limits(self, step: int, families: Sequence[str]) -> Interval:
        """The limits for new questions."""
        ...


@dataclass(frozen=True, slots=True)
class RateFamilies:
    """A share of answers: `clusters[step]` counts each family; at the step `exact`, if any, the value is certain."""

    clusters: Mapping[int, Tally]
    exact: int | None = None
    unknown: frozenset[int] = frozenset()

    def value(self, step: int, families: Sequence[str]) -> float:
        return float("nan") if step in self.unknown else self._counts(step, families).share

    def limits(self, step: int, families: Sequence[str]) -> Interval:
        if step in self.unknown:
            return Interval.none()
        counts = self._counts(step, families)
        return Interval(counts.share, counts.share) if step == self.exact else posterior_interval(counts)

    def _counts(self, step: int, families: Sequence[str]) -> Counts:
        return counts_of(self.clusters[step], [each for each in families if each in self.clusters[step]])


@dataclass(frozen=True, slots=True)
class RiseFamilies:
    """A paired rise of a share of answers since the step `first`.

    `clusters[step]` and `questions[step]` count the answers of each family and of each question, and `members` are the
    questions of each family.
    """

    first: int
    clusters: Mapping[int, Tally]
    questions: Mapping[int, Tally]
    members: Mapping[str, Sequence[str]]
    unknown: frozenset[int] = frozenset()

    def value(self, step: int, families: Sequence[str]) -> float:
        kept = self._answered(self.clusters, step, families)
        if self.unknown & {step, self.first} or not kept:
            return float("nan")
        return math.fsum(self._rate(step, each) - self._rate(self.first, each) for each in kept) / len(kept)

    def limits(self, step: int, families: Sequence[str]) -> Interval:
        if self.unknown & {step, self.first}:
            return Interval.none()
        if step == self.first:
            return Interval(0.0, 0.0)
        kept = self._answered(self.clusters, step, families)
        asked = self._answered(self.questions, step, [name for each in kept for name in self.members[each]])
        after, before = ([counts_of(self.clusters[at], kept)] for at in (step, self.first))
        within = ([counts_of(self.questions[step], asked)], [counts_of(self.questions[self.first], asked)])
        return rate_difference(after, before, questions=within).new_questions

    def _answered(self, tallies: Mapping[int, Tally], step: int, names: Sequence[str]) -> list[str]:
        both = (tallies[step], tallies[self.first])
        return [name for name in names if all(tally.get(name, (0, 0))[1] for tally in both)]

    def _rate(self, step: int, family: str) -> float:
        x, n = self.clusters[step][family]
        return x / n


@dataclass(frozen=True, slots=True)
class MeasuredFamilies:
    """The mean of measured values: `values[step]` has those of each family; at the step `exact` they are certain."""

    values: Mapping[int, Mapping[str, Sequence[float]]]
    exact: int | None = None

    def value(self, step: int, families: Sequence[str]) -> float:
        found = [value for each in families for value in self.values[step].get(each, ())]
        return math.fsum(found) / len(found) if found else float("nan")

    def limits(self, step: int, families: Sequence[str]) -> Interval:
        drawn = [(str(i), value) for i, each in enumerate(families) for value in self.values[step].get(each, ())]
        mean = clustered_mean([value for _, value in drawn], [family for family, _ in drawn])
        if step == self.exact:
            return Interval(mean.value, mean.value)
        # Equal values of all questions say nothing about the spread over other questions.
        return mean.interval if mean.half_width > 0 else Interval.none()


def counts_of(tally: Tally, names: Sequence[str]) -> Counts:
    """The counts of `names`, in their order."""
    return Counts([tally[name][0] for name in names], [tally[name][1] for name in names])
