"""The command line of one combination: the macros of a sweep file's `command`, filled in as `wandb agent` does.

The macros are listed at https://docs.wandb.ai/models/sweeps/define-sweep-configuration#command-options; two differ.
`${interpreter}` is the Python that runs this, where the agent's is the first `python` on PATH, and a macro that does
not exist is refused, where the agent drops it.
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
    """The words to run `parameters` with; `${envvar:NAME}` is still in them.

    Raises:
        ConfigError: a macro is none of W&B's, or the file lacks what it stands for.
    """
    macros = _macros(sweep, parameters, json_file)
    words: list[str] = []
    for word in sweep.command:
        if not (word.startswith("${") and word.endswith("}")) or _ENVIRONMENT_VARIABLE.search(word):
            words.append(word)
            continue
        name = word[2:-1]
        if name not in macros:
            known = [*macros, "envvar:NAME"]
            raise ConfigError(
                f"{sweep.path}: command: {word!r} is not a macro of W&B's; known are {', '.join(known)}"
                f"{nearest(name, known)}"
            )
        if name == "program" and sweep.program is None:
            raise ConfigError(f"{sweep.path}: program: the key is missing, and the command asks for it")
        words += macros[name]
    return words


def with_environment(words: list[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """`words` with every `${envvar:NAME}` replaced, by its own name where there is no such variable."""
    return [_ENVIRONMENT_VARIABLE.sub(lambda found: environment.get(found[1], found[1]), word) for word in words]


def as_typed(words: list[str]) -> str:
    """`words` as a line for a shell."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    shown, variables = _ENVIRONMENT_VARIABLE.subn(r"$\1", word)
    return f'"{shown}"' if variables else shlex.quote(word)


def args_json(parameters: Mapping[str, Any]) -> str:
    """What `${args_json}` is, and what is in the file that `${args_json_file}` names."""
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
