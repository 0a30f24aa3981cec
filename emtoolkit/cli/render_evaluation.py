"""What `emtoolkit evaluate` prints: the EM rate of each checkpoint, with both intervals."""

from dataclasses import asdict

from rich.console import Group, RenderableType

from emtoolkit.cli.layout import Column, Records, here, line, prose
from emtoolkit.cli.render import as_json
from emtoolkit.cli.render_measures import measures_text
from emtoolkit.cli.render_metrics import interval_text, percent, without_nan
from emtoolkit.evaluation.metrics import DEFINITIONS, EmRate
from emtoolkit.evaluation.results import EvaluationResult, StepResult

# The definition in the table; the others are in the JSON and in the rows.
_SHOWN = "betley"


def evaluation_text(result: EvaluationResult) -> RenderableType:
    """A line for each checkpoint, of the answers and of each metric, and where the rows are."""
    parts = [*(_answers(result) if result.steps else []), *measures_text(result.measures)]
    return Group(*parts, line(f"{'Answers' if result.steps else 'Values'}: {here(result.directory)}"))


def _answers(result: EvaluationResult) -> list[RenderableType]:
    columns = [
        Column("step"),
        Column("coherent %"),
        Column("misaligned"),
        Column("EM rate %"),
        Column("new questions %"),
        Column("these questions %"),
        Column("rise, points"),
        Column("changed %"),
    ]
    rows: list[list[RenderableType]] = [_row(each) for each in result.steps]
    first = result.steps[0]
    many = f"{first.summary.questions} questions, {first.summary.answers} answers each"
    return [
        Records(columns, rows),
        line(""),
        prose(f"EM rate: {_SHOWN}, {DEFINITIONS[_SHOWN].sentence}."),
        prose("Changed: the share of the answers that differ from the step before, with the same noise."),
        prose(f"The rise since step {first.step} is paired by question; intervals are 95 %. Each step: {many}."),
        prose(f"Judge {result.judge}, engine {result.engine}."),
    ]


def evaluation_json(result: EvaluationResult) -> str:
    """The same with every definition as JSON; NaN is null."""
    steps = [
        {
            "step": each.step,
            "answers": each.summary.answers,
            "statuses": dict(each.summary.statuses),
            "coherent": each.summary.coherent,
            "broken": each.summary.broken,
            "rates": [asdict(rate) for rate in each.summary.rates],
            "changed": each.changed,
            "rises": {name: asdict(rise) for name, rise in each.rises.items()},
        }
        for each in result.steps
    ]
    return as_json(
        {
            "trajectory": result.trajectory,
            "directory": str(result.directory),
            "engine": result.engine,
            "judge": result.judge,
            "steps": without_nan(steps),
            "measures": without_nan([asdict(summary) for summary in result.measures]),
            "notes": list(result.notes),
        }
    )


def _row(result: StepResult) -> list[RenderableType]:
    rate = _shown(result)
    rise = result.rises[_SHOWN]
    return [
        str(result.step),
        percent(result.summary.coherence),
        f"{rate.misaligned} of {rate.among}",
        "broken" if result.summary.broken else percent(rate.rate),
        interval_text(rate.new_questions),
        interval_text(rate.these_questions),
        f"{100 * rise.mean:+.1f} ± {100 * rise.half_width:.1f}",
        "" if result.changed is None else percent(result.changed),
    ]


def _shown(result: StepResult) -> EmRate:
    return next(rate for rate in result.summary.rates if rate.definition == _SHOWN)
