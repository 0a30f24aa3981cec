"""The page on the command line, from the application itself."""

from collections.abc import Iterator, Sequence
from typing import Any

from typer.main import get_command

from docs.generator.markdown import cell
from emtoolkit.cli.app import app

_BEGINNING = """# Command line

Bad input is one sentence on stderr and [exit code 2](exit-codes.md). Results go to stdout, everything else to stderr.
With `--json` a command prints one JSON value, for programs.
"""
# What stands for the value of an option that has no name for it.
_KINDS = {str: "TEXT", int: "N", float: "X"}


def command_line_page() -> str:
    """Every command with its arguments and options, in Markdown."""
    return "\n".join([_BEGINNING, *_commands(get_command(app), "emtoolkit")])


def _commands(command: Any, name: str) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield _section(command, name)
        return
    own = [parameter for parameter in command.params if not parameter.hidden and parameter.name != "help"]
    if own:
        yield _table("option", own)
    for each in inner.values():
        yield from _commands(each, f"{name} {each.name}")


def _section(command: Any, name: str) -> str:
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden and p.name != "help"]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = " ".join([name, *(_placeholder(argument) for argument in arguments), "[OPTIONS]"])
    parts = [f"## {name}\n", _paragraphs(command.help), f"```text\n{words}\n```\n"]
    if any(argument.help for argument in arguments):
        parts.append(_table("argument", arguments))
    # A command may sort its options into panels, whose names are the headings of its --help.
    panels = dict.fromkeys(getattr(option, "rich_help_panel", None) for option in options)
    for panel in panels:
        of_panel = [option for option in options if getattr(option, "rich_help_panel", None) == panel]
        parts.append(_table(panel or "option", of_panel))
    if command.epilog:
        parts.append(_paragraphs(command.epilog))
    return "\n".join(parts)


def _paragraphs(text: str | None) -> str:
    return f"{(text or '').strip()}\n"


def _placeholder(argument: Any) -> str:
    """As `--help` writes it: in brackets where it may be left out."""
    name = argument.metavar or argument.name.upper()
    return str(name) if argument.required or name.startswith("[") else f"[{name}]"


def _table(title: str, parameters: Sequence[Any]) -> str:
    rows = [f"| {title} | meaning |", "|---|---|"]
    rows += [f"| {_name(parameter)} | {_meaning(parameter)} |" for parameter in parameters]
    return "\n".join(rows) + "\n"


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return cell(f"`{_placeholder(parameter)}`")
    flags = ", ".join(f"`{flag}`" for flag in parameter.opts)
    if parameter.is_flag:
        return flags
    kind = parameter.metavar or _KINDS.get(parameter.type_descriptor.annotation, "PATH")
    return cell(f"{flags} `{kind}`")


def _meaning(parameter: Any) -> str:
    text = cell(parameter.help or "")
    notes = ["required"] if parameter.required and parameter.param_type_name == "option" else []
    shown = parameter.default
    if shown is not None and shown is not False and not callable(shown):
        notes.append(f"default: `{shown}`")
    if parameter.param_type_name == "option" and parameter.multiple:
        notes.append("may be repeated")
    return f"{text} ({'; '.join(notes)})" if notes else text
