"""`emtoolkit checkpoints`: the checkpoints of a directory or of a collection on W&B."""

from typing import Annotated

import typer

from emtoolkit.cli.help import TRAJECTORY_HELP, command
from emtoolkit.cli.output_formats import Csv, Json, check_one_format
from emtoolkit.cli.terminal import only_results_on_stdout, show

commands = typer.Typer()

_Place = Annotated[
    str,
    typer.Argument(metavar="TRAJECTORY", help=TRAJECTORY_HELP),
]
_Where = Annotated[
    list[str] | None,
    typer.Option(metavar="CONDITION", help='Only checkpoints that fit, such as "harmful>0.5 and step<=200".'),
]
_Sort = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column to sort by, or several; -step for the last step first.")
]


@command(
    commands,
    "emtoolkit checkpoints outputs/baseline-medical",
    "emtoolkit checkpoints outputs/baseline-medical --verify",
    'emtoolkit checkpoints lab/em/COLLECTION --where "betley>0.1" --sort -step',
)
def checkpoints(
    place: _Place,
    where: _Where = None,
    sort: _Sort = None,
    as_json: Json = False,
    as_csv: Csv = False,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file; exit code 1 if a file differs.")] = False,
) -> None:
    """List the checkpoints of a directory, of a collection on W&B or of a repository on the Hugging Face hub.

    Columns for --where and --sort are step, size, state, final, what the training logged, and the metrics of the
    evaluations. A checkpoint without a value fits no condition.
    """
    check_one_format(as_json=as_json, as_csv=as_csv)
    from emtoolkit.checkpoints.query import Query

    query = Query.parse(where or (), sort)
    with only_results_on_stdout():
        from emtoolkit.cli import render_checkpoints
        from emtoolkit.evaluation.listed import list_trajectory

        listed = list_trajectory(place, query, rehash=verify)
    for problem in listed.problems:
        typer.echo(f"emtoolkit: {problem}", err=True)
    for note in listed.notes if as_json or as_csv else ():
        typer.echo(f"emtoolkit: {note}", err=True)
    if as_csv:
        show(render_checkpoints.listed_csv(listed))
    else:
        show(render_checkpoints.listed_json(listed) if as_json else render_checkpoints.listed_text(listed))
    if verify and listed.problems:
        raise typer.Exit(1)
