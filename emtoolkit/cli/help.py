"""Help pages: Typer's own, readable at 80 columns, in a pipe and without colours."""

import os
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from emtoolkit.cli.terminal import terminal_width
from emtoolkit.errors import UserError, nearest

TRAJECTORY_HELP = "A run's directory, entity/project/collection on W&B, or hf:ORG/REPO on the hub."


def examples(*lines: str) -> str:
    """The end of a help page: example command lines, each of which must parse."""
    return "\n".join(["Examples:\n", *(f"    {line}" for line in lines)])


def command(
    group: typer.Typer, *lines: str, name: str | None = None, cls: "type[Command] | None" = None
) -> Callable[[Any], Any]:
    """Register a function as a command of `group`, with the example command lines `lines`."""
    return group.command(name, cls=cls or Command, epilog=examples(*lines))


class Command(TyperCommand):
    """A command whose help page fits the terminal and honours NO_COLOR."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _readable(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [each for each in self.get_params(ctx) if each.param_type_name == "argument"]
        return ["[OPTIONS]", *(each.metavar or each.name.upper() for each in arguments)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _prepare_rich()
        super().format_help(ctx, formatter)


class Group(TyperGroup):
    """A group of commands whose help page fits the terminal, and which suggests a command for a misspelt one."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _readable(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _prepare_rich()
        super().format_help(ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            commands = self.list_commands(ctx)
            raise UserError(f"{name}: no such command; expected one of {', '.join(commands)}{nearest(name, commands)}")
        return super().resolve_command(ctx, args)


def _readable(parameters: list[Any]) -> list[Any]:
    """`parameters` without a type for flags, and with `--help` in the panel of the last option."""
    panels = [panel for each in parameters if (panel := getattr(each, "rich_help_panel", None))]
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
        if parameter.param_type_name == "argument":
            # The metavar says what is expected; the Python type beside it says nothing to a user.
            parameter.display_type_rich = _no_type
        if parameter.name == "help" and panels:
            parameter.rich_help_panel = panels[-1]
    return parameters


def _no_type(ctx: Any) -> None:
    """In the place of a parameter's method that returns its type."""


def _prepare_rich() -> None:
    from typer import rich_utils

    rich_utils.MAX_WIDTH = terminal_width()
    # Typer would force colours into the pipes of GitHub Actions; rich itself obeys FORCE_COLOR.
    rich_utils.FORCE_TERMINAL = None
    if os.environ.get("NO_COLOR"):
        # Without a colour system rich writes no escape codes at all, not even those for bold and dim text.
        rich_utils.COLOR_SYSTEM = None
