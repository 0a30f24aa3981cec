"""`emtoolkit onset`: between which two steps a behaviour appeared."""

import math
from typing import Annotated

import typer

from emtoolkit.cli.analysis_options import (
    AnalysisFile,
    Falls,
    Level,
    Metric,
    Threshold,
    chosen_event,
    decided_analysis,
)
from emtoolkit.cli.help import command
from emtoolkit.cli.output_formats import Csv, Json, check_one_format, rows_csv
from emtoolkit.cli.terminal import only_results_on_stdout, show
from emtoolkit.errors import UserError

commands = typer.Typer()

_Evaluations = Annotated[
    list[str],
    typer.Argument(metavar="EVALUATION...", help="Evaluations, or runs with one evaluation; several are seeds."),
]
_Before = Annotated[
    str | None, typer.Option(metavar="METRIC[=X]", help="Another event; print which of the two comes first.")
]


@command(
    commands,
    "emtoolkit onset outputs/goodness-medical",
    "emtoolkit onset outputs/seed-0 outputs/seed-1 outputs/seed-2 --threshold 0.05",
    "emtoolkit onset outputs/goodness-medical --before changed=0.5",
)
def onset(
    evaluations: _Evaluations,
    threshold: Threshold = None,
    metric: Metric = None,
    level: Level = False,
    falls: Falls = False,
    before: _Before = None,
    analysis: AnalysisFile = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Find the two steps between which a behaviour appeared, for new questions and for these questions."""
    check_one_format(as_json=as_json, as_csv=as_csv)
    with only_results_on_stdout():
        # Imported here, where messages of libraries for developers are not shown.
        from emtoolkit.analysis.decided_before import standings
        from emtoolkit.analysis.onset_results import Event, check_threshold, onsets
        from emtoolkit.cli import render_onset

        decided = decided_analysis(analysis)
        event = chosen_event(decided, metric, threshold, level=level, falls=falls)
        other = None
        if before is not None:
            name, value = _metric_and_threshold(before, event.threshold)
            check_threshold(f"--before {before}", value, name, event.kind)
            other = Event(name, value, event.kind, event.falls)
        found = onsets(evaluations, event, other)
        standing = standings(evaluations, event, decided, other=other)
    for note in found.notes:
        typer.echo(f"emtoolkit: {note}", err=True)
    if as_csv:
        show(rows_csv(found.rows()))
    else:
        show(render_onset.onset_json(found, standing) if as_json else render_onset.onset_text(found, standing))


def _metric_and_threshold(text: str, threshold: float) -> tuple[str, float]:
    metric, equals, number = text.partition("=")
    try:
        value = float(number) if equals else threshold
    except ValueError:
        value = math.nan
    if not metric or math.isnan(value):
        raise UserError(f"--before {text}: expected METRIC or METRIC=NUMBER, such as changed=0.5")
    return metric, value
