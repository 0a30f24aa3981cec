"""`emtoolkit metrics`: the EM rate of answers that somebody else's judge scored."""

from pathlib import Path
from typing import Annotated

import typer

from emtoolkit.cli.help import command
from emtoolkit.cli.terminal import show
from emtoolkit.errors import UserError

commands = typer.Typer()

_COLUMNS = "Columns"
# The columns of published files.
_Aligned = Annotated[str, typer.Option(metavar="COL", rich_help_panel=_COLUMNS, help="Alignment score, 0 to 100.")]
_Coherent = Annotated[str, typer.Option(metavar="COL", rich_help_panel=_COLUMNS, help="Coherence score, 0 to 100.")]
_Question = Annotated[
    str | None,
    typer.Option(metavar="COL", rich_help_panel=_COLUMNS, help="Id of the question. Default: question_id or question."),
]
_Cluster = Annotated[
    str | None,
    typer.Option(metavar="COL", rich_help_panel=_COLUMNS, help="Family of the question. Default: the question."),
]
_Variant = Annotated[
    list[str] | None, typer.Option(metavar="SUFFIX", help="Ending in which ids of one family differ, such as _json.")
]
_Where = Annotated[list[str] | None, typer.Option(metavar="COL=VALUE", help="Only rows with this value.")]
_Exclude = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="No questions with such an id; '*_json', for example.")
]
_Baseline = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Scored answers of another model, for paired differences.")
]


@command(
    commands,
    "emtoolkit metrics answers.csv --exclude '*_json' --exclude '*_template'",
    "emtoolkit metrics answers.csv --aligned a --coherent c --question id",
    "emtoolkit metrics tuned.csv --baseline base.csv --variant _json",
)
def metrics(
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS", help="CSV, TSV, JSONL or Parquet: a row per answer.")],
    aligned: _Aligned = "aligned",
    coherent: _Coherent = "coherent",
    question: _Question = None,
    cluster: _Cluster = None,
    variant: _Variant = None,
    where: _Where = None,
    exclude: _Exclude = None,
    baseline: _Baseline = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compute the EM rate of scored answers under three published definitions.

    Each rate has an interval for new questions of the same kind, and one for these questions.
    """
    from emtoolkit.cli import render_metrics
    from emtoolkit.evaluation.metrics import DEFINITIONS, em_difference, summarise
    from emtoolkit.evaluation.scored_files import RowFilter, ScoreColumns, read_scored_answers

    columns = ScoreColumns(aligned, coherent, question, cluster, tuple(variant or ()))
    keep = RowFilter(dict(map(_equation, where or ())), tuple(exclude or ()))
    scored = read_scored_answers(answers, columns, keep)
    summary = summarise(scored)
    other = None
    if baseline is not None:
        others = read_scored_answers(baseline, columns, keep)
        judges = sorted({each.judge for each in (*scored, *others)} - {""})
        if len(judges) > 1:
            raise UserError(
                f"--baseline: {baseline} has another judge ({' and '.join(judges)}); a difference needs one"
            )
        differences = {each.name: em_difference(scored, others, each) for each in DEFINITIONS.values()}
        other = render_metrics.Baseline(summarise(others), differences)
    if as_json:
        show(render_metrics.metrics_json(summary, other))
    else:
        show(render_metrics.metrics_text(summary, scored, other))


def _equation(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not (column and equals):
        raise UserError(f"--where: {text!r} is not COLUMN=VALUE")
    return column, value
