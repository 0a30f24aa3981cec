"""`emtoolkit schema`."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from emtoolkit.cli.help import command

commands = typer.Typer()


class _Kind(StrEnum):
    CONFIG = "config"
    SWEEP = "sweep"


@command(commands, "emtoolkit schema config", "emtoolkit schema sweep")
def schema(
    kind: Annotated[_Kind, typer.Argument(metavar="config|sweep", help="The kind of YAML file.")],
) -> None:
    """Print the JSON schema of a config or of a sweep file, for editors.

    An editor with a YAML language server reads the schema that the first line of a file names:
    `# yaml-language-server: $schema=config.schema.json`.
    """
    if kind is _Kind.CONFIG:
        from emtoolkit.config.schema import config_schema

        found = config_schema()
    else:
        from emtoolkit.sweeps.schema import sweep_schema

        found = sweep_schema()
    typer.echo(json.dumps(found, indent=2))
