"""The rows of measures: one for each value, in a Parquet file, and their summary for each step.

| column | type | content |
|---|---|---|
| trajectory | string | the directory or collection |
| fingerprint | string | of the trajectory |
| step | int64 | the optimizer steps before the save |
| persona | string | the persona that was active |
| metric | string | the metric that the measure gives |
| question | string | the question's id, or the id of an item of the measure's own |
| cluster | string | the family of questions, by default the id |
| value | double | the value, null where the measure defines none |
| measure | string | name and digest of the measure |
| engine | string | `exact` or `stacked`, on a GPU `exact-cuda` or `stacked-cuda` |
| seed | int64 | of a measure that draws random numbers, else null |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from emtoolkit.errors import DataError
from emtoolkit.evaluation.intervals import Counts, Mean, clustered_mean, posterior_interval
from emtoolkit.evaluation.parquet import read_dataclasses, write_dataclasses
from emtoolkit.notebook_tables import AsTable


@dataclass(frozen=True, slots=True)
class MeasureRow:
    """One value of one checkpoint; the module's docstring describes each column."""

    trajectory: str
    fingerprint: str
    step: int
    persona: str
    metric: str
    question: str
    cluster: str
    value: float | None
    measure: str
    engine: str
    seed: int | None


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """A metric of one checkpoint: the mean over the questions, and the mean rise since the first step.

    `rise` is paired: the mean of the differences of single questions. The interval of a metric whose values are all 0
    or 1 is the posterior interval of a rate; other intervals are t intervals, and there is none where all values are
    equal. `undefined` questions have no value here.
    """

    step: int
    mean: Mean
    rise: Mean
    undefined: int


@dataclass(frozen=True, slots=True)
class MetricSummary(AsTable):
    """One metric of one measure over the steps."""

    measure: str
    metric: str
    engine: str
    steps: tuple[MeasuredStep, ...]

    def _title(self) -> str:
        return f"{self.metric} ({self.measure}, engine {self.engine})"

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {
                "step": step.step,
                "metric": self.metric,
                "value": step.mean.value,
                "low": step.mean.interval.low,
                "high": step.mean.interval.high,
                "rise": step.rise.value,
                "rise_low": step.rise.interval.low,
                "rise_high": step.rise.interval.high,
                "questions": step.mean.questions,
            }
            for step in self.steps
        ]


def write_measure_rows(path: Path, rows: Sequence[MeasureRow]) -> None:
    """Write `rows` to the Parquet file `path`, atomically.

    Raises:
        CheckpointError: the file cannot be written.
    """
    write_dataclasses(path, MeasureRow, rows)


def read_measure_rows(path: Path) -> list[MeasureRow]:
    """The rows of `write_measure_rows`.

    Raises:
        DataError: the file is not a Parquet file with these columns, or mixes two settings of a measure.
        CheckpointError: the file cannot be read.
    """
    rows = read_dataclasses(path, MeasureRow, "a file of measured values")
    check_one_measure(str(path), rows)
    return rows


def check_one_measure(where: str, rows: Sequence[MeasureRow]) -> None:
    """Refuse to make one curve of two settings, engines or personas of a measure, or of different questions.

    Raises:
        DataError: a measure has two settings, engines or personas, or a metric has other questions at another step.
    """
    for name, its_rows in _grouped(rows, lambda row: row.measure.rpartition("@")[0]):
        for what, found in (
            ("settings", {row.measure for row in its_rows}),
            ("engines", {row.engine for row in its_rows}),
            ("personas", {row.persona for row in its_rows}),
        ):
            if len(found) > 1:
                raise DataError(
                    f"{where}: values of {len(found)} {what} for the measure {name} ({', '.join(sorted(found))}); one "
                    "curve needs one, so measure the steps again with one"
                )
    for label, its_rows in _grouped(rows, lambda row: f"{row.measure}\0{row.metric}"):
        metric, steps = label.partition("\0")[2], sorted({row.step for row in its_rows})
        questions = {step: {row.question for row in its_rows if row.step == step} for step in steps}
        for step in steps:
            if odd := sorted(questions[step] ^ questions[steps[0]]):
                there, missing = (step, steps[0]) if odd[0] in questions[step] else (steps[0], step)
                raise DataError(
                    f"{where}: metric {metric!r} has a value for question {odd[0]!r} at step {there} and none at step "
                    f"{missing}; a curve needs the same questions at every step"
                )
    _check_same_metrics(where, rows)


def _check_same_metrics(where: str, rows: Sequence[MeasureRow]) -> None:
    for measure, its_rows in _grouped(rows, lambda row: row.measure):
        metrics = {step: {row.metric for row in of_step} for step, of_step in _by_step(its_rows)}
        first = next(iter(metrics))
        for step, found in metrics.items():
            if odd := sorted(found ^ metrics[first]):
                there, missing = (step, first) if odd[0] in found else (first, step)
                raise DataError(
                    f"{where}: measure {measure.rpartition('@')[0]} gives the metric {odd[0]!r} at step {there} and "
                    f"not at step {missing}; a curve needs the same metrics at every step"
                )


def summarise_measures(rows: Sequence[MeasureRow]) -> tuple[MetricSummary, ...]:
    """A summary for each measure and metric, in the order of the rows."""
    found = []
    for label, its_rows in _grouped(rows, lambda row: f"{row.measure}\0{row.metric}"):
        measure, _, metric = label.partition("\0")
        steps = _by_step(its_rows)
        first = {row.question: row.value for row in steps[0][1]}
        # An accuracy, for example: the t interval of a rate near 0 or 1 is too narrow, and leaves the unit interval.
        is_rate = all(row.value in (0.0, 1.0, None) for row in its_rows)
        summaries = tuple(_summarised(step, of_step, first, is_rate=is_rate) for step, of_step in steps)
        found.append(MetricSummary(measure, metric, its_rows[0].engine, summaries))
    return tuple(found)


def _summarised(
    step: int, rows: Sequence[MeasureRow], first: dict[str, float | None], *, is_rate: bool
) -> MeasuredStep:
    known = [(row.value, row.cluster) for row in rows if row.value is not None]
    rises = [
        (row.value - before, row.cluster)
        for row in rows
        if row.value is not None and (before := first.get(row.question)) is not None
    ]
    mean = _mean(known)
    if is_rate:
        mean = replace(mean, interval=posterior_interval(_counts(known)))
    return MeasuredStep(step, mean, _mean(rises), len(rows) - len(known))


def _counts(values: Sequence[tuple[float, str]]) -> Counts:
    """The ones among the values of each cluster."""
    clusters = dict.fromkeys(cluster for _, cluster in values)
    of_cluster = [[value for value, name in values if name == cluster] for cluster in clusters]
    return Counts([round(sum(each)) for each in of_cluster], [len(each) for each in of_cluster])


def _mean(values: Sequence[tuple[float, str]]) -> Mean:
    return clustered_mean([value for value, _ in values], [cluster for _, cluster in values])


def _by_step(rows: Sequence[MeasureRow]) -> list[tuple[int, list[MeasureRow]]]:
    ordered = sorted(rows, key=lambda row: row.step)
    return [(step, list(of_step)) for step, of_step in groupby(ordered, key=lambda row: row.step)]


def _grouped(rows: Sequence[MeasureRow], key: Callable[[MeasureRow], str]) -> list[tuple[str, list[MeasureRow]]]:
    """The rows of each value of `key`, in the order of their first rows."""
    groups: dict[str, list[MeasureRow]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.items())
