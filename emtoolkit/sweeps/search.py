"""A W&B sweep configuration as a value, and the combinations of parameters that it describes."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from emtoolkit.config.wandb_names import check_project
from emtoolkit.errors import ConfigError, nearest, shown
from emtoolkit.sweeps.distributions import Distribution, parse_distribution
from emtoolkit.sweeps.slurm_script import slurm_options
from emtoolkit.sweeps.yaml_versions import check_read_alike
from emtoolkit.yaml_files import mapping_in, read_text, read_yaml
from emtoolkit.yaml_scalars import number_meant

# The command of `wandb agent` where the file has none.
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")

# Far above any sweep, and few enough for the memory.
_MOST_RUNS = 100_000
_METHODS = ("grid", "random")
# Keys for people, for the pages of W&B, or for methods that are not supported here.
_IGNORED = ("apiVersion", "kind", "name", "description", "metric", "controller")
# Keys under which people keep what merge keys (`<<: *name`) refer to.
_ANCHORS = ("x-", ".")
_READ = ("method", "parameters", "program", "command", "project", "entity", "run_cap", "slurm")
_REFUSED = {
    "early_terminate": "stopping runs early compares their metrics on W&B's server; remove the key, or use "
    "'wandb sweep' and 'wandb agent'",
    "job": "W&B Launch starts jobs; give a program or a command",
    "image_uri": "W&B Launch starts images; give a program or a command",
    "scheduler": "a scheduler chooses parameters from the results of earlier runs; use method grid or random",
    "metrics": "several metrics need a scheduler, which is not supported; remove the key",
}
_REFUSED_METHODS = {
    "bayes": "W&B's server chooses parameters from the results of earlier runs; use grid or random here, or "
    "'wandb sweep' and 'wandb agent' with a server",
    "custom": "a W&B scheduler chooses the parameters; use grid or random here, or 'wandb sweep' and 'wandb agent'",
}


@dataclass(frozen=True, slots=True)
class Combination:
    """The parameters of one run; nested ones are a mapping, as W&B's agent passes them.

    `key` is a digest of the command, the program and the parameters, 12 hex digits.
    """

    parameters: Mapping[str, Any]
    key: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep file. `parameters` are sorted by name, as in W&B (`HyperParameterSet.from_config`).

    The name of a nested parameter is the tuple of the names on the way to it. `slurm` are options of `sbatch`.
    """

    path: Path
    method: str
    parameters: Mapping[tuple[str, ...], Distribution]
    command: tuple[str, ...]
    program: str | None
    project: str | None
    entity: str | None
    run_cap: int | None
    slurm: Mapping[str, str | bool] = field(default_factory=dict)

    def combinations(self, *, count: int | None = None, seed: int = 0) -> list[Combination]:
        """The combinations, each once: a grid in W&B's order, or random draws; at most `count` and at most `run_cap`.

        A draw that repeats an earlier one is dropped. The draws of one `seed` begin alike, however many are taken.

        Raises:
            ConfigError: a grid over a parameter that has no list of values, or a random search without a limit.
        """
        limit = min((limit for limit in (count, self.run_cap) if limit is not None), default=None)
        if self.method == "random" and limit is None:
            raise ConfigError(f"{self.path}: run_cap: a random search never ends; set run_cap, or pass --count")
        if limit is not None and limit > _MOST_RUNS:
            raise ConfigError(f"{self.path}: run_cap: {limit:,} runs are more than the {_MOST_RUNS:,} of a sweep")
        found = self._draws(limit or 0, seed) if self.method == "random" else self._grid()
        unique: dict[str, Combination] = {}
        for values in found:
            if limit is not None and len(unique) == limit:
                break
            parameters = _nested(zip(self.parameters, values, strict=True))
            combination = Combination(parameters, _key(self.command, self.program, parameters))
            unique.setdefault(combination.key, combination)
        return list(unique.values())

    def _grid(self) -> Iterable[tuple[Any, ...]]:
        axes = []
        for name, distribution in self.parameters.items():
            values = distribution.grid()
            if values is None:
                raise ConfigError(
                    f"{self.path}: parameters.{'.parameters.'.join(name)}: a grid needs a list of values "
                    "(found probabilities or a range of numbers); write values, or use method: random"
                )
            axes.append(values)
        count = math.prod(map(len, axes))
        if count > _MOST_RUNS and self.run_cap is None:
            raise ConfigError(
                f"{self.path}: parameters: {count:,} combinations are more than the {_MOST_RUNS:,} of a sweep; "
                "set run_cap"
            )
        return product(*axes)

    def _draws(self, count: int, seed: int) -> list[tuple[Any, ...]]:
        random = Random(seed)
        return [tuple(distribution.draw(random) for distribution in self.parameters.values()) for _ in range(count)]


def is_sweep(path: Path) -> bool:
    """Whether `path` is a sweep file: a YAML file with the key `parameters`.

    Raises:
        ConfigError: the file exists and cannot be read.
    """
    return path.is_file() and "parameters" in read_yaml(path)


def read_sweep(path: Path) -> Sweep:
    """The sweep in the file at `path`.

    Raises:
        ConfigError: the file is not a valid sweep, or needs W&B's server; names the key, the value and the remedy.
    """
    text = read_text(path)
    content = mapping_in(text, path)
    for key, value in content.items():
        if key in _REFUSED:
            raise ConfigError(f"{path}: {key}: not supported without a server: {_REFUSED[key]}")
        if key not in _READ and key not in _IGNORED and not key.startswith(_ANCHORS):
            known = (*_READ, *_IGNORED)
            hint = nearest(str(key), known)
            raise ConfigError(f"{path}: {key}: unknown key (value {shown(value)}); expected {', '.join(known)}{hint}")
    method = content.get("method")
    if isinstance(method, str) and method in _REFUSED_METHODS:
        raise ConfigError(
            f"{path}: method: {shown(method)} is not supported without a server: {_REFUSED_METHODS[method]}"
        )
    if method not in _METHODS:
        problem = "the key is missing" if method is None else f"{shown(method)} is not one of {' and '.join(_METHODS)}"
        raise ConfigError(f"{path}: method: {problem}{nearest(str(method), _METHODS)}")
    command, program = _command(content, path), _text(content, "program", path)
    check_read_alike(text, path, content)
    return Sweep(
        path=path,
        method=method,
        parameters=dict(_parameters(content.get("parameters"), f"{path}: parameters")),
        command=command,
        program=program,
        project=_project(content, path),
        entity=_text(content, "entity", path),
        run_cap=_run_cap(content, path),
        slurm=slurm_options(content.get("slurm") or {}, f"{path}: slurm"),
    )


def _parameters(content: Any, where: str) -> Iterator[tuple[tuple[str, ...], Distribution]]:
    """The names and distributions under the key `parameters`, whose file and dotted key is `where`."""
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{where}: {shown(content)} is not a mapping of names to values")
    for name in content:
        if not isinstance(name, str):
            raise ConfigError(f"{where}.{name}: the name {name!r} is not a string")
        if not name.strip():
            raise ConfigError(f"{where}: the name {name!r} is empty; write the name of an option or of a config key")
    for name in sorted(content):
        inner, place = content[name], f"{where}.{name}"
        if not isinstance(inner, dict) or "parameters" not in inner:
            yield (name,), parse_distribution(inner, place)
            continue
        if beside := [key for key in inner if key != "parameters"]:
            raise ConfigError(f"{place}.{beside[0]}: a parameter with nested parameters has no value; remove the key")
        yield from (((name, *path), found) for path, found in _parameters(inner["parameters"], f"{place}.parameters"))


def _nested(values: Iterable[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for (*sections, name), value in values:
        inner = found
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return found


def _command(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    command = content.get("command") or list(DEFAULT_COMMAND)
    if not isinstance(command, list) or not all(isinstance(word, str | int | float) for word in command):
        raise ConfigError(
            f"{path}: command: {shown(command)} is not a list of words such as ${{program}} and ${{args}}"
        )
    return tuple(map(str, command))


def _text(content: Mapping[str, Any], key: str, path: Path) -> str | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{path}: {key}: {shown(value)} is not a string")
    return value


def _project(content: Mapping[str, Any], path: Path) -> str | None:
    name = _text(content, "project", path)
    try:
        if name is not None:
            check_project(name)
    except ValueError as error:
        raise ConfigError(f"{path}: project: {shown(name)} is not valid: {error}") from None
    return name


def _run_cap(content: Mapping[str, Any], path: Path) -> int | None:
    value = number_meant(content.get("run_cap"), whole=True)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ConfigError(f"{path}: run_cap: {shown(value)} is not a number of runs; expected a whole number from 1 on")
    return value


def _key(command: Sequence[str], program: str | None, parameters: Mapping[str, Any]) -> str:
    content = json.dumps([list(command), program, _plain(parameters)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    """`value` with whole floats as integers: W&B treats 3 and 3.0 as one value."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value
