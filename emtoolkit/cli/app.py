"""The command line: each command parses its words, calls one function and prints what came back."""

import typer

from emtoolkit.cli import checkpoints, sandbox, sweep, train
from emtoolkit.cpu_threads import let_waiting_threads_sleep
from emtoolkit.errors import UserError
from emtoolkit.launch import exit_with_error

app = typer.Typer(
    name="emtoolkit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Save a fine-tune at exactly the training steps that matter, and find out when a behaviour appeared.",
)
for group in (train, checkpoints, sweep):
    app.add_typer(group.commands)
app.add_typer(sandbox.commands, name="sandbox")


def main() -> None:
    """The `emtoolkit` console script: bad input is one sentence on stderr and exit code 2."""
    let_waiting_threads_sleep()
    try:
        app()
    except UserError as error:
        exit_with_error(f"emtoolkit: {error}")
