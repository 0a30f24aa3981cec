"""A sweep file of W&B's, and the combinations of parameters that it asks for, as values."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from emtoolkit.errors import ConfigError, nearest
from emtoolkit.sweeps.distributions import Distribution, parse_distribution
from emtoolkit.yaml_files import read_yaml

# What `wandb agent` runs where the file has no `command`.
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")

_METHODS = ("grid", "random")
# What they say is for people, for W&B's pages, or for a method that is refused anyway.
_IGNORED = ("apiVersion", "kind", "name", "description", "metric", "controller")
_READ = ("method", "parameters", "program", "command", "project", "entity", "run_cap")
_REFUSED = {
    "early_terminate": "runs are stopped early by comparing their metrics, which takes a server; remove it, or use "
    "'wandb sweep' and 'wandb agent'",
    "job": "a job is started by W&B Launch; give a program or a command",
    "image_uri": "an image is started by W&B Launch; give a program or a command",
    "scheduler": "a scheduler chooses by the results of earlier runs; use method grid or random",
    "metrics": "several metrics are for a scheduler, which is not supported; remove it",
}
_REFUSED_METHODS = {
    "bayes": "it chooses by the results of earlier runs, which W&B's server compares; use grid or random here, or "
    "'wandb sweep' and 'wandb agent' with a server",
    "custom": "it needs a scheduler of W&B's; use grid or random here, or W&B's own commands",
}


@dataclass(frozen=True, slots=True)
class Combination:
    """One run of a sweep. `key` is the same for the same parameters given to the same command, and only then."""

    parameters: Mapping[str, Any]
    key: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep file says, its parameters in the order of their names, as W&B has them."""

    path: Path
    method: str
    parameters: Mapping[str, Distribution]
    command: tuple[str, ...]
    program: str | None
    project: str | None
    entity: str | None
    run_cap: int | None

    def combinations(self, *, count: int | None = None, seed: int = 0) -> list[Combination]:
        """Every combination once: of a grid in W&B's order, else `count` draws, at most `run_cap` in either case.

        Draws that repeat an earlier one are that one, and more of them with the same `seed` begin with the same.

        Raises:
            ConfigError: the parameters cannot be listed, or nothing says how many to draw.
        """
        most = min((limit for limit in (count, self.run_cap) if limit is not None), default=None)
        if self.method == "random" and most is None:
            raise ConfigError(f"{self.path}: run_cap: a random search has no end; write run_cap, or give --count")
        found = self._drawn(most or 0, seed) if self.method == "random" else self._grid()
        unique: dict[str, Combination] = {}
        for values in found:
            if most is not None and len(unique) == most:
                break
            parameters = dict(zip(self.parameters, values, strict=True))
            combination = Combination(parameters, _key(self.command, self.program, parameters))
            unique.setdefault(combination.key, combination)
        return list(unique.values())

    def _grid(self) -> Iterable[tuple[Any, ...]]:
        axes = []
        for name, distribution in self.parameters.items():
            values = distribution.grid()
            if values is None:
                raise ConfigError(
                    f"{self.path}: parameters.{name}: a grid takes a list of values, and this has none "
                    "(found probabilities or a range of numbers); write values, or use method: random"
                )
            axes.append(values)
        return product(*axes)

    def _drawn(self, count: int, seed: int) -> list[tuple[Any, ...]]:
        random = Random(seed)
        return [tuple(distribution.draw(random) for distribution in self.parameters.values()) for _ in range(count)]


def is_sweep(path: Path) -> bool:
    """Whether the YAML file at `path` is a sweep's and not a run's.

    Raises:
        ConfigError: it is there and cannot be read.
    """
    return path.is_file() and "parameters" in read_yaml(path)


def read_sweep(path: Path) -> Sweep:
    """The sweep in the file at `path`.

    Raises:
        ConfigError: one sentence with the file, the dotted key, the value and what was expected.
    """
    content = read_yaml(path)
    for key, value in content.items():
        if key in _REFUSED:
            raise ConfigError(f"{path}: {key}: not supported without a server: {_REFUSED[key]}")
        if key not in _READ and key not in _IGNORED:
            known = (*_READ, *_IGNORED)
            hint = nearest(str(key), known)
            raise ConfigError(f"{path}: {key}: unknown key (value {value!r}); expected {', '.join(known)}{hint}")
    method = content.get("method")
    if method in _REFUSED_METHODS:
        raise ConfigError(f"{path}: method: {method!r} is not supported without a server: {_REFUSED_METHODS[method]}")
    if method not in _METHODS:
        problem = "the key is missing" if method is None else f"{method!r} is not one of {' and '.join(_METHODS)}"
        raise ConfigError(f"{path}: method: {problem}{nearest(str(method), _METHODS)}")
    command, program = _command(content, path), _text(content, "program", path)
    return Sweep(
        path=path,
        method=method,
        parameters=_parameters(content, path),
        command=command,
        program=program,
        project=_text(content, "project", path),
        entity=_text(content, "entity", path),
        run_cap=_run_cap(content, path),
    )


def _parameters(content: Mapping[str, Any], path: Path) -> dict[str, Distribution]:
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise ConfigError(f"{path}: parameters: {parameters!r} is not a mapping of names to values")
    for name in parameters:
        if not isinstance(name, str):
            raise ConfigError(f"{path}: parameters.{name}: the name {name!r} is not a text")
    return {name: parse_distribution(parameters[name], f"{path}: parameters.{name}") for name in sorted(parameters)}


def _command(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    command = content.get("command") or list(DEFAULT_COMMAND)
    if not isinstance(command, list) or not all(isinstance(word, str | int | float) for word in command):
        raise ConfigError(f"{path}: command: {command!r} is not a list of words such as ${{program}} and ${{args}}")
    return tuple(map(str, command))


def _text(content: Mapping[str, Any], key: str, path: Path) -> str | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{path}: {key}: {value!r} is not a text")
    return value


def _run_cap(content: Mapping[str, Any], path: Path) -> int | None:
    value = content.get("run_cap")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ConfigError(f"{path}: run_cap: {value!r} is not a number of runs, which is 1 or more")
    return value


def _key(command: Sequence[str], program: str | None, parameters: Mapping[str, Any]) -> str:
    # W&B has 3 and 3.0 for one value.
    plain = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in parameters.items()}
    content = json.dumps([list(command), program, plain], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:12]
