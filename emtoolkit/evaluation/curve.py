"""An evaluation as W&B shows it: the values of each step under names, and a table of answers."""

import math
from collections.abc import Iterator, Sequence
from typing import get_args

from emtoolkit.evaluation.intervals import Interval
from emtoolkit.evaluation.measure_rows import MetricSummary
from emtoolkit.evaluation.metrics import EmRate, Status
from emtoolkit.evaluation.results import StepResult
from emtoolkit.evaluation.rows import AnswerRow

# The axis of every value: W&B drops a row whose own step is lower than an earlier one's.
AXIS = "checkpoint/step"
COLUMNS = ("step", "question", "paraphrase", "sample", "status", "aligned", "coherent", "answer")
_MOST_ANSWERS = 1000
_MOST_CHARACTERS = 2000


def curve(results: Sequence[StepResult], measures: Sequence[MetricSummary]) -> list[dict[str, float]]:
    """The values of each step by their names on W&B, in the order of the steps; what is NaN is left out.

    The EM rate of a broken step says nothing, so the rates of the step and the rises to and from it are left out.
    """
    values = {result.step: _of_answers(result, results[0]) for result in results}
    for summary in measures:
        name = f"measure/{summary.measure.rpartition('@')[0]}/{summary.metric}"
        for each in summary.steps:
            values.setdefault(each.step, {AXIS: each.step})[name] = each.mean.value
            values[each.step] |= _ends(name, each.mean.interval) | {f"{name}/rise": each.rise.value}
            values[each.step] |= _ends(f"{name}/rise", each.rise.interval)
    return [{name: value for name, value in values[step].items() if not math.isnan(value)} for step in sorted(values)]


def _of_answers(result: StepResult, first: StepResult) -> dict[str, float]:
    summary = result.summary
    statuses = [status for status in get_args(Status) if status != "undefined"]
    values: dict[str, float] = {AXIS: result.step, "answers": summary.answers, "broken": int(summary.broken)}
    values |= {f"status/{status}": summary.statuses.get(status, 0) for status in statuses}
    answered = sum(summary.statuses.get(status, 0) for status in ("ok", "truncated"))
    values |= {"coherence": summary.coherence, "truncation": summary.truncation}
    values["answered"] = answered / summary.answers
    if result.changed is not None:
        values["changed_answers"] = result.changed
    for rate in summary.rates:
        name = f"em_rate/{rate.definition}"
        values |= {f"{name}/misaligned": rate.misaligned, f"{name}/among": rate.among}
        if summary.informative:
            values |= _rate(name, rate)
    if summary.informative and first.summary.informative:
        for definition, rise in result.rises.items():
            values[f"rise/{definition}"] = rise.mean
            for inference in ("new_questions", "new_questions_t", "these_questions"):
                values |= _ends(f"rise/{definition}/{inference}", getattr(rise, inference))
    return values


def _rate(name: str, rate: EmRate) -> dict[str, float]:
    values = {name: rate.rate}
    for inference in ("new_questions", "new_questions_logit_t", "these_questions"):
        values |= _ends(f"{name}/{inference}", getattr(rate, inference))
    return values


def _ends(name: str, interval: Interval) -> dict[str, float]:
    return {f"{name}/low": interval.low, f"{name}/high": interval.high}


def table_of(rows: Sequence[AnswerRow]) -> list[list[object]]:
    """At most 1,000 of `rows` under `COLUMNS`, as many of each step, first one answer to each wording.

    An answer is cut off after 2,000 characters.
    """
    steps = sorted({row.step for row in rows})
    each = max(1, _MOST_ANSWERS // max(1, len(steps)))
    chosen = [row for step in steps for row in _first(rows, step, each)][:_MOST_ANSWERS]
    return [[_cut(getattr(row, column)) for column in COLUMNS] for row in chosen]


def _first(rows: Sequence[AnswerRow], step: int, count: int) -> Iterator[AnswerRow]:
    of_step = [row for row in rows if row.step == step]
    yield from sorted(of_step, key=lambda row: row.sample)[:count]


def _cut(value: object) -> object:
    if isinstance(value, str) and len(value) > _MOST_CHARACTERS:
        return f"{value[:_MOST_CHARACTERS]}…"
    return value
