"""The command of one combination: the macros in a sweep file's `command`, replaced as `wandb agent` replaces them.

The macros are listed at https://docs.wandb.ai/models/sweeps/define-sweep-configuration#command-options. Two things
differ: `${interpreter}` is the Python that runs emtoolkit (the agent takes the first `python` on PATH), and an unknown
macro is an error (the agent drops it).
"""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emtoolkit.errors import ConfigError, nearest
from emtoolkit.sweeps.search import Sweep

_ENVIRONMENT_VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a command. In a word of the sweep file's `command` the macro `${envvar:NAME}` is replaced.

    In a value of a parameter the macro is text, to W&B's agent as well.
    """

    text: str
    has_macros: bool = False


def command_of(sweep: Sweep, parameters: Mapping[str, Any], json_file: Path) -> list[Word]:
    """The command that runs `parameters`, with `${envvar:NAME}` not yet replaced.

    Raises:
        ConfigError: an unknown macro, or `${program}` where the file has no `program`.
    """
    macros = _macros(sweep, parameters, json_file)
    words: list[Word] = []
    for word in sweep.command:
        if not (word.startswith("${") and word.endswith("}")) or _ENVIRONMENT_VARIABLE.search(word):
            words.append(Word(word, has_macros=True))
            continue
        name = word[2:-1]
        if name not in macros:
            known = [*macros, "envvar:NAME"]
            raise ConfigError(
                f"{sweep.path}: command: {word!r} is not a W&B macro; expected one of {', '.join(known)}"
                f"{nearest(name, known)}"
            )
        if name == "program" and sweep.program is None:
            raise ConfigError(f"{sweep.path}: program: the key is missing, and the command contains ${{program}}")
        words += map(Word, macros[name])
    return words


def with_environment(words: Iterable[Word], environment: Mapping[str, str] = os.environ) -> list[str]:
    """The argv with each `${envvar:NAME}` replaced by the variable's value, by NAME where the variable is not set."""

    def replaced(word: Word) -> str:
        return _ENVIRONMENT_VARIABLE.sub(lambda found: environment.get(found[1], found[1]), word.text)

    return [replaced(word) if word.has_macros else word.text for word in words]


def as_typed(
    words: Iterable[Word], environment: Mapping[str, str] = os.environ, shell: Mapping[str, str] = os.environ
) -> str:
    """A command line for a POSIX shell with the variables `shell` that gives the argv of `with_environment`.

    `${envvar:NAME}` is `"$NAME"` where the shell has the variable; everything else is quoted.
    """
    return " ".join(_quoted(word, environment, shell) for word in words)


def _quoted(word: Word, environment: Mapping[str, str], shell: Mapping[str, str]) -> str:
    if not word.has_macros:
        return shlex.quote(word.text)
    quoted, literal = "", ""
    # Every second part is the name of a variable.
    for at, part in enumerate(_ENVIRONMENT_VARIABLE.split(word.text)):
        if at % 2 == 0:
            literal += part
        elif part.isidentifier() and part in shell and shell[part] == environment.get(part):
            quoted += f'{shlex.quote(literal) if literal else ""}"${part}"'
            literal = ""
        else:
            literal += environment.get(part, part)
    return quoted + (shlex.quote(literal) if literal or not quoted else "")


def args_json(parameters: Mapping[str, Any]) -> str:
    """The value of `${args_json}` and the content of the file `${args_json_file}`."""
    return json.dumps(dict(parameters), default=str)


def _macros(sweep: Sweep, parameters: Mapping[str, Any], json_file: Path) -> dict[str, list[str]]:
    pairs = [(name, str(value), value) for name, value in parameters.items()]
    return {
        "env": ["/usr/bin/env"] if os.name == "posix" else [],
        "interpreter": [sys.executable],
        "program": [sweep.program or ""],
        "args": [f"--{name}={text}" for name, text, _ in pairs],
        "args_no_equals": [word for name, text, _ in pairs for word in (f"--{name}", text)],
        "args_no_hyphens": [f"{name}={text}" for name, text, _ in pairs],
        "args_no_boolean_flags": [
            f"--{name}" if value is True else f"--{name}={text}" for name, text, value in pairs if value is not False
        ],
        "args_append_hydra": [f"+{name}={text}" for name, text, _ in pairs],
        "args_override_hydra": [f"++{name}={text}" for name, text, _ in pairs],
        "args_json": [args_json(parameters)],
        "args_json_file": [str(json_file)],
    }
