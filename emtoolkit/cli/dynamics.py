"""`emtoolkit dynamics`: how the weights move from checkpoint to checkpoint."""

import signal
from typing import Annotated

import typer

from emtoolkit.cli.help import TRAJECTORY_HELP, command
from emtoolkit.cli.output_formats import Csv, Json, check_one_format
from emtoolkit.cli.terminal import only_results_on_stdout, progress_bar, show

commands = typer.Typer()

_Trajectory = Annotated[
    str,
    typer.Argument(metavar="TRAJECTORY", help=TRAJECTORY_HELP),
]
_Window = Annotated[
    list[int] | None,
    typer.Option(metavar="STEPS", help="Window of the local cosine; may be repeated. Default: the commonest distance."),
]
_Steps = Annotated[str | None, typer.Option(metavar="SCHEDULE", help="Steps to compare, or final. Default: all.")]
_Modules = Annotated[bool, typer.Option("--modules", help="Norms of each module.")]


@command(
    commands,
    "emtoolkit dynamics outputs/goodness-medical",
    "emtoolkit dynamics outputs/goodness-medical --window 25 --window 50",
    "emtoolkit dynamics outputs/goodness-medical --modules --csv",
)
def dynamics(
    trajectory: _Trajectory,
    window: _Window = None,
    steps: _Steps = None,
    modules: _Modules = False,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Compute norms, distances, turns and principal components of the path of the weights."""
    check_one_format(as_json=as_json, as_csv=as_csv)
    try:
        with only_results_on_stdout(), progress_bar() as progress:
            # Imported here, where messages of libraries for developers are not shown.
            from emtoolkit.analysis.dynamics import trajectory_dynamics
            from emtoolkit.cli import render_dynamics
            from emtoolkit.trajectory import Trajectory

            found = trajectory_dynamics(Trajectory.open(trajectory), tuple(window or ()), steps, progress=progress)
    except KeyboardInterrupt:
        typer.echo("emtoolkit: interrupted", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    for note in found.notes:
        typer.echo(f"emtoolkit: {note}", err=True)
    if as_json:
        show(render_dynamics.dynamics_json(found, modules=modules))
    elif as_csv:
        show(render_dynamics.dynamics_csv(found, modules=modules))
    else:
        show(render_dynamics.dynamics_text(found, modules=modules))
