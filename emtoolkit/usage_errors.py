"""Usage errors of a command line, such as an unknown option, as one sentence."""

from typing import Any

import typer

from emtoolkit.errors import nearest

# Typer may bring its own copy of Click, whose classes it does not export; this is the base of all usage errors.
UsageError: Any = typer.BadParameter.__base__


def usage_sentence(error: Any) -> str:
    """A usage error as `place: problem; what to do`; empty if the help page was printed in place of a message."""
    context, parameter, option = error.ctx, getattr(error, "param", None), getattr(error, "option_name", None)
    command = "emtoolkit" if context is None else context.command_path
    advice = f"; see '{command} --help'"
    if hasattr(error, "possibilities"):
        flags = [flag for each in context.command.get_params(context) for flag in each.opts]
        return f"{option}: no such option{nearest(str(option), flags) or advice}"
    problem = str(error.message).strip().removeprefix(f"Option '{option}' ").rstrip(".")
    problem = f"{problem[:1].lower()}{problem[1:]}"
    if parameter is not None:
        place = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar or parameter.name
        problem = problem.removeprefix("value error, ")
        # A refused choice quotes its value already.
        value = "" if " is not one of " in problem else _value_of(error)
        return f"{place}: {value}{problem or 'missing'}{advice}"
    return f"{option or command}: {problem}{advice}" if problem else ""


def _value_of(error: Any) -> str:
    """The value that pydantic, with which Typer parses, found wrong."""
    found: list[Any] = getattr(error.__cause__, "errors", list)()
    return f"{found[0]['input']!r} is not valid: " if found else ""
