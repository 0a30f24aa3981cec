"""`emtoolkit onset`: between which two steps a behaviour appeared."""

from typing import Annotated

import typer

from emtoolkit.cli.help import command
from emtoolkit.cli.terminal import only_results_on_stdout, show
from emtoolkit.errors import UserError

commands = typer.Typer()

_Evaluations = Annotated[
    list[str],
    typer.Argument(metavar="EVALUATION...", help="Evaluations, or runs with one evaluation; several are seeds."),
]
_Threshold = Annotated[float, typer.Option(metavar="X", help="Value that the curve crosses; 0.10 is ten points.")]
_Metric = Annotated[
    str, typer.Option(metavar="NAME", help="Definition of the EM rate, changed, or the metric of a measure.")
]
_Level = Annotated[bool, typer.Option("--level", help="The metric itself in place of its rise since step 0.")]
_Falls = Annotated[bool, typer.Option("--falls", help="A fall below the threshold in place of a rise.")]
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
    threshold: _Threshold = 0.10,
    metric: _Metric = "betley",
    level: _Level = False,
    falls: _Falls = False,
    before: _Before = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the two steps between which a behaviour appeared, for new questions and for these questions."""
    with only_results_on_stdout():
        # Imported here, where messages of libraries for developers are not shown.
        from emtoolkit.analysis.onset_results import Event, onsets
        from emtoolkit.cli import render_onset

        event = Event(metric, threshold, "level" if level else "rise", falls)
        other = None if before is None else Event(*_metric_and_threshold(before, threshold), event.kind, falls)
        found = onsets(evaluations, event, other)
    for note in found.notes:
        typer.echo(f"emtoolkit: {note}", err=True)
    show(render_onset.onset_json(found) if as_json else render_onset.onset_text(found))


def _metric_and_threshold(text: str, threshold: float) -> tuple[str, float]:
    metric, equals, number = text.partition("=")
    try:
        return metric, float(number) if equals else threshold
    except ValueError:
        raise UserError(f"--before: {text!r} is not METRIC or METRIC=NUMBER") from None
