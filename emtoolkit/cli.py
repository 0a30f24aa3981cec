"""The command line: each command parses its words, calls one function and prints what came back."""

import sys

import typer

from emtoolkit.errors import UserError

app = typer.Typer(
    name="emtoolkit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Save a fine-tune at exactly the training steps that matter, and find out when a behaviour appeared.",
)


@app.callback()
def _root() -> None:
    """Kept so that a single command stays a subcommand."""


def main() -> None:
    """The `emtoolkit` console script: bad input is one sentence on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"emtoolkit: {error}", err=True)
        sys.exit(2)
