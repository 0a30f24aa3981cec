"""`emtoolkit save` and `emtoolkit stop`: requests to a training that runs in another process."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emtoolkit.cli.help import command
from emtoolkit.cli.interruption import ends_on_signal
from emtoolkit.cli.output_formats import Json
from emtoolkit.cli.terminal import show
from emtoolkit.errors import UserError

if TYPE_CHECKING:
    from emtoolkit.saving.requests import Kind

commands = typer.Typer()

_Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Output directory of the run.")]
_Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="Longest wait for the checkpoint.")]
_SECONDS = 120.0


@command(
    commands,
    "emtoolkit save outputs/goodness-medical",
    "emtoolkit save outputs/goodness-medical --timeout 600",
    "emtoolkit save outputs/goodness-medical --json",
)
def save(directory: _Directory, timeout: _Timeout = _SECONDS, as_json: Json = False) -> None:
    """Make a running training save the step it is at, and go on.

    The training may run on another machine that has the directory.
    """
    _ask(directory, "save", timeout, as_json=as_json)


@command(
    commands,
    "emtoolkit stop outputs/goodness-medical",
    "emtoolkit stop outputs/goodness-medical --timeout 600",
    "emtoolkit stop outputs/goodness-medical --json",
)
def stop(directory: _Directory, timeout: _Timeout = _SECONDS, as_json: Json = False) -> None:
    """Make a running training save its state and stop, as on SIGTERM.

    The training may run on another machine that has the directory. Its command with --resume continues it.
    """
    _ask(directory, "stop", timeout, as_json=as_json)


def _ask(directory: Path, kind: "Kind", timeout: float, *, as_json: bool) -> None:
    from emtoolkit.cli import render
    from emtoolkit.saving.requests import NotAnsweredError, ask

    if not 0 <= timeout < math.inf:
        raise UserError(f"--timeout: {timeout:g} is not a number of seconds, 0 or more")
    try:
        with ends_on_signal("the request is withdrawn unless the training has taken it"):
            answer = ask(directory, kind, timeout)
    except NotAnsweredError as error:
        typer.echo(f"emtoolkit: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        show(render.as_json(asdict(answer) | {"path": str(answer.path)}))
        return
    then = "training goes on" if kind == "save" else "training has stopped" if answer.stopped else "training stops"
    show(f"{answer.path}: step {answer.step} is saved; {then}")
