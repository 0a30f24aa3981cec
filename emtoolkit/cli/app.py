"""The command line: each command parses its arguments, calls one function and prints the result."""

import errno
import sys
from typing import Annotated

import typer
from typer.main import get_command

import emtoolkit
from emtoolkit.artifacts.client_variables import client_variables
from emtoolkit.cli import (
    best,
    checkpoint_list,
    checkpoints,
    compare,
    direction,
    dynamics,
    evaluate,
    judge,
    metrics,
    onset,
    prune,
    push,
    refine,
    report,
    requests,
    sandbox,
    schema,
    sweep,
    train,
    zoom,
)
from emtoolkit.cli.help import Group, examples
from emtoolkit.cpu_threads import let_waiting_threads_sleep
from emtoolkit.errors import UserError, shortened
from emtoolkit.launch import exit_with_error
from emtoolkit.usage_errors import UsageError, usage_sentence

app = typer.Typer(
    name="emtoolkit",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=(
        f"emtoolkit {emtoolkit.__version__} saves a fine-tune at exactly the training steps that matter, "
        "and finds out when a behaviour appeared."
    ),
    epilog=examples(
        "emtoolkit schedule every:100 dense-early --total-steps 397",
        "emtoolkit train config.yaml --schedule dense-early --dry-run",
        "emtoolkit checkpoints outputs/baseline-medical",
    ),
)
for group in (
    train,
    requests,
    checkpoints,
    checkpoint_list,
    refine,
    best,
    prune,
    push,
    sweep,
    evaluate,
    judge,
    onset,
    zoom,
    compare,
    dynamics,
    direction,
    report,
    metrics,
    schema,
):
    app.add_typer(group.commands)
app.add_typer(sandbox.commands, name="sandbox")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"emtoolkit {emtoolkit.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Holds the options of `emtoolkit` itself."""


def main() -> None:
    """The `emtoolkit` console script: bad input is one sentence on stderr and exit code 2."""
    let_waiting_threads_sleep()
    try:
        with client_variables():
            exit_code = get_command(app).main(standalone_mode=False)
    except UserError as error:
        exit_with_error(f"emtoolkit: {error}")
    except UsageError as error:
        # The sentence is empty after `emtoolkit` alone, which has printed its help page.
        if sentence := usage_sentence(error):
            exit_with_error(f"emtoolkit: {sentence}")
        sys.exit(2)
    except OSError as error:
        # Python asks for a name this long and gets an error in place of "there is none".
        if error.errno != errno.ENAMETOOLONG:
            raise
        exit_with_error(f"emtoolkit: {shortened(str(error.filename))}: no file has a name this long")
    sys.exit(exit_code or 0)
