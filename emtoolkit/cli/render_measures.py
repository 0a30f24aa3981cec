"""The measures in the output of `emtoolkit evaluate`: each metric at each checkpoint, with its interval."""

import math
from collections.abc import Sequence

from rich.console import RenderableType

from emtoolkit.cli.layout import Column, Records, line, prose
from emtoolkit.evaluation.intervals import Interval
from emtoolkit.evaluation.measure_rows import MeasuredStep, MetricSummary

_DASH = "—"


def measures_text(summaries: Sequence[MetricSummary]) -> list[RenderableType]:
    """A table for each metric, and what its columns are; nothing without a metric."""
    parts: list[RenderableType] = []
    for summary in summaries:
        parts += [line(""), line(f"{summary.metric} ({summary.measure}, engine {summary.engine})"), _table(summary)]
    if summaries:
        first = summaries[0].steps[0].step
        parts += [
            line(""),
            prose(
                f"Mean over the questions, and rise since step {first} paired by question, each with its 95 % interval "
                "for new questions; equal values of all questions give none."
            ),
        ]
    return parts


def _table(summary: MetricSummary) -> RenderableType:
    columns = [Column("step"), Column("questions"), Column("mean"), Column("95 %"), Column("rise"), Column("rise 95 %")]
    gaps = any(step.undefined for step in summary.steps)
    if gaps:
        columns.append(Column("undefined"))
    return Records(columns, [[*_row(step), *([str(step.undefined)] if gaps else [])] for step in summary.steps])


def _row(step: MeasuredStep) -> list[RenderableType]:
    return [
        str(step.step),
        str(step.mean.questions),
        _number(step.mean.value),
        _interval(step.mean.interval),
        _number(step.rise.value, sign="+"),
        _interval(step.rise.interval, sign="+"),
    ]


def _number(value: float, sign: str = "") -> str:
    return _DASH if math.isnan(value) else f"{value:{sign}.4g}"


def _interval(interval: Interval, sign: str = "") -> str:
    return _DASH if math.isnan(interval.low) else f"{interval.low:{sign}.4g} to {interval.high:{sign}.4g}"
