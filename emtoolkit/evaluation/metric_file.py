"""`metrics.json` in the directory of an evaluation: the value of each metric at each step, for readers without rows."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emtoolkit.checkpoints.metric_values import FORMAT, METRICS, digests_of_rows
from emtoolkit.evaluation.intervals import Interval
from emtoolkit.evaluation.measure_rows import MeasureRow, summarise_measures
from emtoolkit.evaluation.metrics import DEFINITIONS, Summary, summarise
from emtoolkit.evaluation.rows import AnswerRow
from emtoolkit.storage.atomic import write_file
from emtoolkit.storage.digests import canonical_json


def write_metrics(
    directory: Path, settings: Mapping[str, Any], answers: Sequence[AnswerRow], measured: Sequence[MeasureRow]
) -> None:
    """Write the metrics of `answers` and `measured`, all rows that `directory` holds; the caller holds its lock.

    Raises:
        CheckpointError: the file cannot be written.
    """
    rows: list[AnswerRow | MeasureRow] = [*answers, *measured]
    if not rows:
        return
    summaries = {step: _summary(answers, step) for step in sorted({row.step for row in answers})}
    found: list[tuple[str, Any]] = []
    if summaries:
        found += [(name, _rates(summaries, name)) for name in DEFINITIONS]
        found += [
            (name, _steps({step: _row(getattr(each, name)) for step, each in summaries.items()}))
            for name in ("coherence", "truncation")
        ]
    found += [
        (each.metric, _steps({step.step: _row(step.mean.value, step.mean.interval) for step in each.steps}))
        for each in summarise_measures(measured)
    ]
    counts = Counter(name for name, _ in found)
    metrics = [
        {"metric": name, "steps": steps} | ({"ambiguous": True} if counts[name] > 1 else {}) for name, steps in found
    ]
    questions = len({row.question for row in rows})
    content = {
        "format": FORMAT,
        "fingerprint": rows[0].fingerprint,
        "files": digests_of_rows(directory),
        "described": f"judge {settings.get('judge', '—')}, {questions} questions",
        "metrics": metrics,
    }
    write_file(directory / METRICS, canonical_json(content))


def _summary(answers: Sequence[AnswerRow], step: int) -> Summary:
    return summarise([row.scored() for row in answers if row.step == step])


def _rates(summaries: Mapping[int, Summary], name: str) -> dict[str, dict[str, float]]:
    """The rate of definition `name` at each step; a broken model has none."""
    rows = {}
    for step, summary in summaries.items():
        rate = next(each for each in summary.rates if each.definition == name)
        rows[step] = _row(rate.rate, rate.new_questions, rate.these_questions) if summary.informative else {}
    return _steps(rows)


def _row(value: float, new: Interval | None = None, these: Interval | None = None) -> dict[str, float]:
    ends = {"value": value}
    if new is not None:
        ends |= {"low": new.low, "high": new.high}
    if these is not None:
        ends |= {"these_low": these.low, "these_high": these.high}
    return ends


def _steps(rows: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The rows without NaN, by their steps as JSON has them."""
    return {
        str(step): {name: value for name, value in row.items() if not math.isnan(value)} for step, row in rows.items()
    }
