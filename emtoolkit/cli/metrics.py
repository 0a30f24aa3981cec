"""`emtoolkit metrics`: the EM rate of answers that somebody else's judge scored."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from emtoolkit.cli.help import command
from emtoolkit.cli.output_formats import Json
from emtoolkit.cli.terminal import show
from emtoolkit.errors import UserError

commands = typer.Typer()

_COLUMNS, _DIFFERENCE = "Columns", "Difference"
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
_Against = Annotated[
    list[Path] | None,
    typer.Option(
        "--against",
        "--baseline",
        metavar="FILE",
        rich_help_panel=_DIFFERENCE,
        help="Answers of the other side; several files are seeds.",
    ),
]
_AgainstWhere = Annotated[
    list[str] | None,
    typer.Option(metavar="COL=VALUE", rich_help_panel=_DIFFERENCE, help="Rows of the other side. Default: --where."),
]

_Labels = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Answers with the judge's scores and people's labels: rates without its errors."),
]
_Label = Annotated[str, typer.Option(metavar="COL", rich_help_panel=_COLUMNS, help="Label in --labels, 1 or 0.")]


@command(
    commands,
    "emtoolkit metrics answers.csv --exclude '*_json' --exclude '*_template'",
    "emtoolkit metrics tuned.csv --against base.csv --variant _json",
    "emtoolkit metrics a0.csv a1.csv a2.csv --against b0.csv --against b1.csv",
)
def metrics(
    answers: Annotated[
        list[Path],
        typer.Argument(metavar="ANSWERS...", help="CSV, TSV, JSONL or Parquet: a row per answer; a file per seed."),
    ],
    aligned: _Aligned = "aligned",
    coherent: _Coherent = "coherent",
    question: _Question = None,
    cluster: _Cluster = None,
    variant: _Variant = None,
    where: _Where = None,
    exclude: _Exclude = None,
    against: _Against = None,
    against_where: _AgainstWhere = None,
    labels: _Labels = None,
    label: _Label = "misaligned",
    as_json: Json = False,
) -> None:
    """Compute the EM rate of scored answers under three published definitions.

    Each rate has an interval for new questions of the same kind, and one for these questions.
    """
    from emtoolkit.cli import render_metrics
    from emtoolkit.evaluation.comparison import compare
    from emtoolkit.evaluation.labelled_files import corrected_rates
    from emtoolkit.evaluation.scored_files import RowFilter, ScoreColumns, read_scored_file

    columns = ScoreColumns(aligned, coherent, question, cluster, tuple(variant or ()))
    keep = RowFilter(dict(map(_equation, where or ())), tuple(exclude or ()))
    if against_where and not against:
        raise UserError("--against-where: names rows of the other side; give --against FILE too")
    keep_against = keep if against_where is None else RowFilter(dict(map(_equation, against_where)), keep.exclude)
    files = [read_scored_file(path, columns, keep) for path in answers]
    others = [read_scored_file(path, columns, keep_against) for path in against or ()]
    differences = compare(files, others).differences if others else None
    result = render_metrics.ScoredModels(tuple(files), tuple(others), differences)
    if labels is not None:
        if len(files) > 1:
            raise UserError(f"--labels: the rates of one file can be corrected, not of {len(files)}; give one ANSWERS")
        result = replace(result, corrected=corrected_rates(files[0], result.summaries[0], labels, columns, label))
    show(render_metrics.metrics_json(result) if as_json else render_metrics.metrics_text(result))


def _equation(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not (column and equals):
        raise UserError(f"--where: {text!r} is not COLUMN=VALUE")
    return column, value
