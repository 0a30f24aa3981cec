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
    PERSONA = "persona"
    ANALYSIS = "analysis"
    PRESET = "preset"


@command(commands, "emtoolkit schema config", "emtoolkit schema sweep", "emtoolkit schema persona")
def schema(
    kind: Annotated[
        _Kind, typer.Argument(metavar="config|sweep|persona|analysis|preset", help="The kind of YAML file.")
    ],
) -> None:
    """Print the JSON schema of a config, a sweep, a persona, an analysis or a preset of a schedule, for editors.

    An editor with a YAML language server reads the schema that the first line of a file names:
    `# yaml-language-server: $schema=config.schema.json`.
    """
    from emtoolkit.config.schema import config_schema, persona_schema, preset_schema
    from emtoolkit.evaluation.decided_schema import analysis_schema
    from emtoolkit.sweeps.schema import sweep_schema

    schemas = {
        _Kind.CONFIG: config_schema,
        _Kind.SWEEP: sweep_schema,
        _Kind.PERSONA: persona_schema,
        _Kind.ANALYSIS: analysis_schema,
        _Kind.PRESET: preset_schema,
    }
    typer.echo(json.dumps(schemas[kind](), indent=2))
