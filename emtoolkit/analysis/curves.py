"""Curves over the steps of one evaluation: the rise since step 0, or the level, with the limits of both inferences.

`new_questions` are limits for other questions of the same kind, `these_questions` for the same questions again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

from emtoolkit.analysis.families import MeasuredFamilies, OfFamilies, RateFamilies, RiseFamilies, Tally, counts_of
from emtoolkit.analysis.onset import Point
from emtoolkit.errors import DataError, nearest
from emtoolkit.evaluation.intervals import Interval, clustered_mean, posterior_interval, same_questions_interval
from emtoolkit.evaluation.measure_rows import MeasureRow
from emtoolkit.evaluation.metrics import (
    BROKEN_BELOW,
    DEFINITIONS,
    EmDefinition,
    ScoredAnswer,
    em_difference,
    em_rate,
    misaligned_counts,
    summarise,
)
from emtoolkit.evaluation.result_files import StoredEvaluation
from emtoolkit.evaluation.rows import AnswerRow
from emtoolkit.notebook_tables import AsTable

Kind = Literal["rise", "level"]
CHANGED = "changed"
# The metrics that answers have; the others are those of measures.
OF_ANSWERS = (*DEFINITIONS, CHANGED)


@dataclass(frozen=True, slots=True)
class Curve(AsTable):
    """A metric over the steps: `by_cluster` has the value of each family of questions at each step.

    `of_families` gives the point at a step if only certain families of questions had been asked, a family several times
    where it is named several times; its limits are those for new questions.
    """

    metric: str
    kind: Kind
    new_questions: tuple[Point, ...]
    these_questions: tuple[Point, ...]
    by_cluster: Mapping[int, Mapping[str, float]]
    of_families: OfFamilies = field(repr=False)
    notes: tuple[str, ...] = ()

    def _title(self) -> str:
        return f"{self.metric}, {'rise since step 0' if self.kind == 'rise' else 'level'}"

    def _rows(self) -> list[dict[str, Any]]:
        """The limits for new questions, then those for these questions."""
        return [
            {
                "step": point.step,
                "value": point.value,
                "low": point.limits.low,
                "high": point.limits.high,
                "these_low": these.limits.low,
                "these_high": these.limits.high,
            }
            for point, these in zip(self.new_questions, self.these_questions, strict=True)
        ]


def curve_of(evaluation: StoredEvaluation, metric: str, kind: Kind) -> Curve:
    """The curve of `metric`: a definition of the EM rate, `changed`, or the metric of a measure.

    Raises:
        DataError: the evaluation has no such metric, or no step 0 to rise from.
    """
    if metric in DEFINITIONS and evaluation.rows:
        steps = _by_step(evaluation.rows)
        if kind == "rise":
            _check_step_0(evaluation, steps[0][0])
        return em_curve([(step, [row.scored() for row in rows]) for step, rows in steps], DEFINITIONS[metric], kind)
    if metric == CHANGED and evaluation.rows:
        steps = _by_step(evaluation.rows)
        _check_step_0(evaluation, steps[0][0])
        return changed_curve(steps)
    measured = [row for row in evaluation.measured if row.metric == metric]
    if not measured:
        known = metrics_of(evaluation)
        raise DataError(
            f"{evaluation.directory}: no metric {metric!r}; it has {', '.join(known)}{nearest(metric, known)}"
        )
    if len({row.measure for row in measured}) > 1:
        raise DataError(f"{evaluation.directory}: two measures give the metric {metric!r}; rename one")
    if kind == "rise":
        _check_step_0(evaluation, min(row.step for row in measured))
    return measured_curve(metric, measured, kind)


def metrics_of(evaluation: StoredEvaluation) -> list[str]:
    """The metrics that an evaluation has curves of."""
    of_answers = OF_ANSWERS if evaluation.rows else ()
    return [*of_answers, *dict.fromkeys(row.metric for row in evaluation.measured)]


def em_curve(steps: Sequence[tuple[int, Sequence[ScoredAnswer]]], definition: EmDefinition, kind: Kind) -> Curve:
    """The EM rate, or its rise since the first of `steps`; a step that is broken has no limits.

    A rise and its limits are those of `em_difference`.
    """
    first, at_first = steps[0]
    tallies = {step: misaligned_counts(answers, definition, lambda each: each.cluster) for step, answers in steps}
    broken = [step for step, answers in steps if summarise(answers, ()).broken]
    new, these = [], []
    for step, answers in steps:
        value, pair = float("nan"), (Interval.none(), Interval.none())
        if kind == "level" and step not in broken:
            rate = em_rate(answers, definition)
            value, pair = rate.rate, (rate.new_questions, rate.these_questions)
        elif kind == "rise" and step == first and step not in broken:
            value, pair = 0.0, (Interval(0.0, 0.0), Interval(0.0, 0.0))
        elif kind == "rise" and not {step, first} & {*broken}:
            rise, _ = em_difference(answers, at_first, definition)
            value, pair = rise.mean, (rise.new_questions, rise.these_questions)
        new.append(Point(step, value, pair[0]))
        these.append(Point(step, value, pair[1]))
    values = {step: _values(tally, tallies[first] if kind == "rise" else None) for step, tally in tallies.items()}
    families: OfFamilies = RateFamilies(tallies, unknown=frozenset(broken))
    if kind == "rise":
        asked = {step: misaligned_counts(answers, definition, lambda each: each.question) for step, answers in steps}
        members = _members([each for _, answers in steps for each in answers])
        families = RiseFamilies(first, tallies, asked, members, frozenset(broken))
    return Curve(definition.name, kind, tuple(new), tuple(these), values, families, _broken_note(broken))


def changed_curve(steps: Sequence[tuple[int, Sequence[AnswerRow]]]) -> Curve:
    """The share of answers that differ from those of the first step, to the same wording with the same noise."""
    first_step, first = steps[0]
    texts = {(row.question, row.paraphrase, row.sample): row.answer for row in first}
    new, these, values = [], [], {}
    tallies: dict[int, Tally] = {}
    for step, rows in steps:
        clusters: dict[str, tuple[int, int]] = {}
        questions: dict[str, tuple[int, int]] = {}
        for row in rows:
            before = texts.get((row.question, row.paraphrase, row.sample))
            if before is not None:
                for tally, key in ((clusters, row.cluster), (questions, row.question)):
                    x, n = tally.get(key, (0, 0))
                    tally[key] = (x + (row.answer != before), n + 1)
        tallies[step] = clusters
        counts, of_questions = counts_of(clusters, list(clusters)), counts_of(questions, list(questions))
        both = (posterior_interval(counts), same_questions_interval(of_questions))
        if step == first_step:
            both = (Interval(0.0, 0.0), Interval(0.0, 0.0))
        new.append(Point(step, counts.share, both[0]))
        these.append(Point(step, counts.share, both[1]))
        values[step] = _values(clusters, None)
    return Curve(CHANGED, "rise", tuple(new), tuple(these), values, RateFamilies(tallies, exact=first_step))


def measured_curve(metric: str, rows: Sequence[MeasureRow], kind: Kind) -> Curve:
    """The mean of a measured metric, or its mean rise since the first step; for these questions it is exact."""
    ordered = sorted(rows, key=lambda row: row.step)
    steps = [(step, list(of_step)) for step, of_step in groupby(ordered, key=lambda row: row.step)]
    start = {row.question: row.value for row in steps[0][1]}
    new, these, values = [], [], {}
    clusters: dict[int, dict[str, list[float]]] = {}
    for step, its_rows in steps:
        found = []
        for row in its_rows:
            base = start.get(row.question) if kind == "rise" else 0.0
            if row.value is not None and base is not None:
                found.append((row.cluster, row.value - base))
        mean = clustered_mean([value for _, value in found], [cluster for cluster, _ in found])
        exact = Interval(mean.value, mean.value)
        # Equal values of all questions say nothing about the spread over other questions.
        limits = mean.interval if mean.half_width > 0 else Interval.none()
        new.append(Point(step, mean.value, exact if kind == "rise" and step == steps[0][0] else limits))
        these.append(Point(step, mean.value, exact))
        clusters[step] = {cluster: [value for name, value in found if name == cluster] for cluster, _ in found}
        values[step] = {cluster: math.fsum(each) / len(each) for cluster, each in clusters[step].items()}
    families = MeasuredFamilies(clusters, steps[0][0] if kind == "rise" else None)
    return Curve(metric, kind, tuple(new), tuple(these), values, families)


def _check_step_0(evaluation: StoredEvaluation, first: int) -> None:
    if first != 0:
        raise DataError(
            f"{evaluation.directory}: a rise counts from step 0, and the first evaluated step is {first}; run "
            "'emtoolkit evaluate' with step 0, or look at the level with --level"
        )


def _by_step(rows: Sequence[AnswerRow]) -> list[tuple[int, list[AnswerRow]]]:
    ordered = sorted(rows, key=lambda row: row.step)
    return [(step, list(of_step)) for step, of_step in groupby(ordered, key=lambda row: row.step)]


def _members(answers: Sequence[ScoredAnswer]) -> dict[str, list[str]]:
    """The questions of each family."""
    families: dict[str, dict[str, None]] = {}
    for answer in answers:
        families.setdefault(answer.cluster, {})[answer.question] = None
    return {family: [*questions] for family, questions in families.items()}


def _values(tally: Tally, before: Tally | None) -> dict[str, float]:
    rates = {key: x / n for key, (x, n) in tally.items() if n}
    if before is None:
        return rates
    start = {key: x / n for key, (x, n) in before.items() if n}
    return {key: rate - start[key] for key, rate in rates.items() if key in start}


def _broken_note(broken: Sequence[int]) -> tuple[str, ...]:
    if not broken:
        return ()
    steps = ", ".join(map(str, broken))
    return (f"at steps {steps} fewer than {BROKEN_BELOW:.0%} of the answers are coherent: they decide nothing",)
