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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emtoolkit.errors import ConfigError, nearest
from emtoolkit.sweeps.search import Sweep

_ENVIRONMENT_VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


def command_of(sweep: Sweep, parameters: Mapping[str, Any], json_file: Path) -> list[str]:
    """The argv that runs `parameters`, with `${envvar:NAME}` not yet replaced.

    Raises:
        ConfigError: an unknown macro, or `${program}` where the file has no `program`.
    """
    macros = _macros(sweep, parameters, json_file)
    argv: list[str] = []
    for word in sweep.command:
        if not (word.startswith("${") and word.endswith("}")) or _ENVIRONMENT_VARIABLE.search(word):
            argv.append(word)
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
        argv += macros[name]
    return argv


def with_environment(argv: list[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """`argv` with each `${envvar:NAME}` replaced by the variable's value, by NAME where the variable is not set."""
    return [_ENVIRONMENT_VARIABLE.sub(lambda found: environment.get(found[1], found[1]), word) for word in argv]


def as_typed(argv: list[str]) -> str:
    """`argv` quoted for a shell, with `${envvar:NAME}` as `$NAME`."""
    return " ".join(map(_quoted, argv))


def _quoted(word: str) -> str:
    shown, variables = _ENVIRONMENT_VARIABLE.subn(r"$\1", word)
    return f'"{shown}"' if variables else shlex.quote(word)


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
