"""The output of `emtoolkit evaluate`: the EM rate of each checkpoint, with both intervals."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from emtoolkit.cli.layout import Column, Records, here, line, prose
from emtoolkit.cli.render import as_json
from emtoolkit.cli.render_calibration import calibration_sentence
from emtoolkit.cli.render_measures import measures_text
from emtoolkit.cli.render_metrics import (
    difference_cells,
    difference_json,
    interval_text,
    percent,
    rate_text,
    summary_json,
    without_nan,
)
from emtoolkit.evaluation.metrics import DEFINITIONS, EmRate
from emtoolkit.evaluation.results import EvaluationResult, StepResult
from emtoolkit.shell_command import shell_command

if TYPE_CHECKING:
    from emtoolkit.evaluation.wandb_record import EvaluationRun

# The definition in the table; the others are in the JSON and in the rows.
_SHOWN = "betley"


def evaluation_text(result: EvaluationResult, run: "EvaluationRun | None" = None) -> RenderableType:
    """A line for each checkpoint, of the answers and of each metric, and where the rows are, on disk and on W&B."""
    parts = [*(_answers(result) if result.steps else []), *measures_text(result.measures)]
    what = "Answers" if result.steps else "Values" if result.measures else "Activations"
    place = line(f"{what}: {here(result.directory)}")
    return Group(*parts, place, *_on_wandb(result, run))


def _answers(result: EvaluationResult) -> list[RenderableType]:
    columns = [
        Column("step"),
        Column("misaligned"),
        Column("EM rate %"),
        Column("new questions %"),
        Column("these questions %"),
    ]
    first = result.steps[0]
    rows: list[list[RenderableType]] = [_row(each) for each in result.steps]
    many = f"{first.summary.questions} questions, {first.summary.answers} answers each"
    return [
        Records(columns, rows),
        line(""),
        _guard(result),
        line(""),
        *_rises(result),
        prose(f"EM rate: {_SHOWN}, {DEFINITIONS[_SHOWN].sentence}."),
        prose(f"Answers: {_statuses(result.steps)}."),
        prose(f"Intervals are 95 %. Each step: {many}."),
        prose(f"Judge {result.judge}, engine {result.engine}."),
        *([] if result.calibration is None else [prose(calibration_sentence(result.calibration))]),
    ]


def _on_wandb(result: EvaluationResult, run: "EvaluationRun | None") -> list[RenderableType]:
    if run is None:
        return []
    if run.sent:
        return [line(f"W&B run: {run.path}")]
    return [line(f"Publish on W&B: {shell_command('emtoolkit', 'sync', Path(here(result.directory)))}")]


def evaluation_json(result: EvaluationResult, run: "EvaluationRun | None" = None) -> str:
    """The same with every definition as JSON; NaN is null."""
    first = next(iter(result.steps), None)
    steps = [
        {
            "step": each.step,
            **summary_json(each.summary),
            "changed": each.changed,
            "rises": {name: difference_json(rise, each.summary, first.summary) for name, rise in each.rises.items()},
        }
        for each in result.steps
        if first is not None
    ]
    return as_json(
        {
            "trajectory": result.trajectory,
            "directory": str(result.directory),
            "engine": result.engine,
            "judge": result.judge,
            "steps": without_nan(steps),
            "measures": without_nan([asdict(summary) for summary in result.measures]),
            "calibration": None if result.calibration is None else result.calibration.to_json(),
            "notes": list(result.notes),
            "wandb": None if run is None else {"run": run.path, "sent": run.sent},
        }
    )


def _guard(result: EvaluationResult) -> Records:
    """Signs that a model is broken, beside which a low EM rate is to be read."""
    columns = [Column("step"), Column("coherent %"), Column("truncated %"), Column("empty %")]
    rows: list[list[RenderableType]] = [
        [
            str(each.step),
            percent(each.summary.coherence),
            percent(each.summary.truncation),
            percent(each.summary.statuses.get("empty", 0) / each.summary.answers),
        ]
        for each in result.steps
    ]
    return Records(columns, rows)


def _row(result: StepResult) -> list[RenderableType]:
    rate, summary = _shown(result), result.summary
    return [
        str(result.step),
        f"{rate.misaligned} of {rate.among}",
        rate_text(summary, rate),
        interval_text(rate.new_questions) if summary.informative else "—",
        interval_text(rate.these_questions) if summary.informative else "—",
    ]


def _rises(result: EvaluationResult) -> list[RenderableType]:
    """The rise of each step since the first, if there are several."""
    first, *later = result.steps
    if not later:
        return []
    names = ("step", "rise, points", "new questions", "(t)", "these questions", "changed %")
    rows: list[list[RenderableType]] = [
        [
            str(each.step),
            *difference_cells(each.rises[_SHOWN], each.summary, first.summary),
            "" if each.changed is None else percent(each.changed),
        ]
        for each in later
    ]
    return [
        Records([Column(name) for name in names], rows),
        line(""),
        prose(f"Rise: since step {first.step}, paired by question."),
        prose("Changed: the share of the answers that differ from the step before, with the same noise."),
    ]


def _statuses(steps: Sequence[StepResult]) -> str:
    """The counts of each status, with the steps that have them where the steps differ."""
    of_counts: dict[str, list[int]] = {}
    for each in steps:
        counts = sorted(each.summary.statuses.items(), key=lambda item: (item[0] != "ok", item[0]))
        of_counts.setdefault(", ".join(f"{count} {status}" for status, count in counts), []).append(each.step)
    if len(of_counts) == 1:
        return next(iter(of_counts))
    return "; ".join(f"{text} (step {', '.join(map(str, their))})" for text, their in of_counts.items())


def _shown(result: StepResult) -> EmRate:
    return next(rate for rate in result.summary.rates if rate.definition == _SHOWN)
