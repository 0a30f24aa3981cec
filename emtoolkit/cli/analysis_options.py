"""The options that choose an event: given one by one, or as an analysis that was decided before."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emtoolkit.errors import UserError, located

if TYPE_CHECKING:
    from emtoolkit.analysis.onset_results import Event
    from emtoolkit.evaluation.decided import DecidedAnalysis

AnalysisFile = Annotated[
    Path | None, typer.Option("--analysis", metavar="FILE", help="Analysis that was decided before the evaluation.")
]
Threshold = Annotated[
    float | None, typer.Option(metavar="X", help="Value that the curve crosses. Default: 0.10, ten points.")
]
Metric = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Definition of the EM rate, changed, or the metric of a measure. Default: betley."
    ),
]
Level = Annotated[bool, typer.Option("--level", help="The metric itself in place of its rise since step 0.")]
Falls = Annotated[bool, typer.Option("--falls", help="A fall below the threshold in place of a rise.")]


def check_can_write(option: str, path: Path, *, directory: bool = False) -> None:
    """Check before the work begins that a file, or with `directory` a directory, can be written at `path`.

    Raises:
        UserError: something else is there, or the directory of the file is not.
    """
    if directory and path.exists() and not path.is_dir():
        raise UserError(f"{option}: {path} is a file; name a directory")
    if not directory and path.is_dir():
        raise UserError(f"{option}: {path} is a directory; name a file in it")
    if not directory and not path.parent.is_dir():
        raise UserError(f"{option}: {path.parent}: no such directory; make it first")


def decided_analysis(path: Path | None) -> "DecidedAnalysis | None":
    """The analysis in the file at `path`, whose event is valid.

    Raises:
        UserError: the file cannot be read, or a value is not valid.
    """
    from emtoolkit.evaluation.decided import read_analysis

    if path is None:
        return None
    decided = read_analysis(path)
    with located(str(path)):
        chosen_event(decided, None, None)
    return decided


def chosen_event(
    decided: "DecidedAnalysis | None",
    metric: str | None,
    threshold: float | None,
    *,
    level: bool = False,
    falls: bool = False,
) -> "Event":
    """The event: the options that are given, and else the decided analysis or the default."""
    from emtoolkit.analysis.onset_results import Event, check_threshold

    base = Event() if decided is None else Event(decided.metric, decided.threshold, decided.curve, decided.falls)
    kind = "level" if level else base.kind
    chosen = base.metric if metric is None else metric
    if threshold is not None:
        check_threshold(f"--threshold {threshold:g}", threshold, chosen, kind)
    return Event(chosen, base.threshold if threshold is None else threshold, kind, falls or base.falls)
