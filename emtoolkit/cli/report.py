"""`emtoolkit report`: one HTML file on evaluated trajectories."""

import signal
from pathlib import Path
from typing import Annotated

import typer

import emtoolkit
from emtoolkit.cli.analysis_options import (
    AnalysisFile,
    Falls,
    Level,
    Metric,
    Threshold,
    check_can_write,
    chosen_event,
    decided_analysis,
)
from emtoolkit.cli.help import command
from emtoolkit.cli.terminal import only_results_on_stdout, progress_bar, show

commands = typer.Typer()

_Evaluations = Annotated[
    list[str], typer.Argument(metavar="EVALUATION...", help="Evaluations, runs, or directories of runs.")
]
_Out = Annotated[Path, typer.Option(metavar="FILE", help="The HTML file to write.")]
_Schedules = Annotated[
    list[str] | None, typer.Option(metavar="SPEC,SPEC...", help="Schedules to compare; see 'emtoolkit compare'.")
]
_Weights = Annotated[bool, typer.Option("--no-weights", help="Leave out the comparison of the weights.")]

_Figures = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Directory for a PNG and an SVG file of each figure.")
]
_Wandb = Annotated[bool, typer.Option("--wandb", help="Make a W&B Report, too; needs W&B's server.")]


@command(
    commands,
    "emtoolkit report outputs/goodness-medical --out report.html",
    "emtoolkit report outputs --out report.html --schedules every:100,dense-early",
    "emtoolkit report outputs --no-weights --out report.html --figures figures",
)
def report(
    evaluations: _Evaluations,
    out: _Out,
    threshold: Threshold = None,
    metric: Metric = None,
    level: Level = False,
    falls: Falls = False,
    schedules: _Schedules = None,
    analysis: AnalysisFile = None,
    no_weights: _Weights = False,
    figures: _Figures = None,
    wandb: _Wandb = False,
) -> None:
    """Write one self-contained HTML file: onsets, curves, schedules, weights and answers."""
    try:
        with only_results_on_stdout(), progress_bar() as progress:
            # Imported here, where messages of libraries for developers are not shown.
            from emtoolkit.analysis.compare import split_schedules
            from emtoolkit.analysis.figures import save_report_figures
            from emtoolkit.analysis.report import gather, page
            from emtoolkit.analysis.report_steps import record_steps
            from emtoolkit.analysis.wandb_report import save_on_wandb
            from emtoolkit.storage.atomic import write_file

            decided = decided_analysis(analysis)
            check_can_write("--out", out)
            if figures is not None:
                check_can_write("--figures", figures, directory=True)
            event = chosen_event(decided, metric, threshold, level=level, falls=falls)
            specs = [spec for text in schedules or () for spec in split_schedules(text)]
            if not specs and decided is not None:
                specs = list(decided.schedules)
            found = gather(evaluations, event, specs, decided=decided, weights=not no_weights, progress=progress)
            if figures is not None:
                save_report_figures(found, figures)
            made_by = f"emtoolkit {emtoolkit.__version__}"
            write_file(out, page(found, made_by).encode())
            record_steps(found, str(out.absolute()))
            on_wandb = save_on_wandb(found, made_by) if wandb else None
    except KeyboardInterrupt:
        typer.echo("emtoolkit: interrupted", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    for note in (*found.notes, *(on_wandb.notes if on_wandb else ())):
        typer.echo(f"emtoolkit: {note}", err=True)
    show(str(out))
    if on_wandb is not None:
        show(on_wandb.url)
