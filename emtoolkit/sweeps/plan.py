"""What a sweep will run: each combination with its command, where it writes, and what became of it before."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emtoolkit.config.output_template import PLACEHOLDERS, as_file_name
from emtoolkit.errors import ConfigError, UserError
from emtoolkit.sweeps.command import command_of, with_environment
from emtoolkit.sweeps.search import Sweep, read_sweep
from emtoolkit.sweeps.sweep_file import Attempt, SweepRecord

# Set by `wandb agent`; a run of ours that inherited them would believe that it belongs to the agent's.
_OF_AN_AGENT = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")

# Where the words of a command make it write, None if they do not tell.
DirectoryOf = Callable[[Sequence[str], Mapping[str, str]], Path | None]


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One combination. `words` still name environment variables; `before` is the attempt at it so far."""

    key: str
    parameters: Mapping[str, Any]
    words: list[str]
    log: Path
    json_file: Path
    directory: Path | None
    before: Attempt

    @property
    def is_finished(self) -> bool:
        """Whether it need not run again: it ended well, and what it wrote was not removed since."""
        return self.before.state == "finished" and (self.directory is None or self.directory.is_dir())


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """The runs of a sweep file, the environment they get, and the directory of its record and logs."""

    runs: tuple[SweepRun, ...]
    environment: Mapping[str, str]
    directory: Path


def plan_sweep(
    path: Path,
    directory_of: DirectoryOf,
    *,
    count: int | None = None,
    seed: int = 0,
    environment: Mapping[str, str] = os.environ,
) -> SweepPlan:
    """The plan of the sweep file at `path`; reads the record of earlier calls, runs and writes nothing.

    Raises:
        UserError: the file, or a command that it makes, cannot work; two combinations would write into one directory.
    """
    sweep = read_sweep(path)
    directory = Path("outputs/sweeps") / f"{as_file_name(path.stem)}-local"
    record = SweepRecord(directory)
    variables = _environment(sweep, environment)
    runs = []
    for combination in sweep.combinations(count=count, seed=seed):
        values = "-".join(map(str, combination.parameters.values()))
        stem = directory / "logs" / f"{as_file_name(values)}-{combination.key}"
        json_file = stem.with_name(f"{stem.name}.json")
        words = command_of(sweep, combination.parameters, json_file)
        try:
            writes_to = directory_of(with_environment(words, variables), variables)
        except UserError as error:
            raise ConfigError(f"{path}: {described(combination.parameters)}: {error}") from None
        runs.append(
            SweepRun(
                key=combination.key,
                parameters=combination.parameters,
                words=words,
                log=stem.with_name(f"{stem.name}.log"),
                json_file=json_file,
                directory=writes_to,
                before=record.get(combination.key) or Attempt(combination.parameters),
            )
        )
    _check_apart(path, runs)
    return SweepPlan(tuple(runs), variables, directory)


def described(parameters: Mapping[str, Any]) -> str:
    """`persona=goodness schedule=every:25`."""
    return " ".join(f"{name}={value}" for name, value in parameters.items())


def _environment(sweep: Sweep, environment: Mapping[str, str]) -> dict[str, str]:
    variables = {name: value for name, value in environment.items() if name not in _OF_AN_AGENT}
    defaults = {"WANDB_MODE": "offline", "WANDB_PROJECT": sweep.project, "WANDB_ENTITY": sweep.entity}
    for name, value in defaults.items():
        if value is not None and not variables.get(name):
            variables[name] = value
    return variables


def _check_apart(path: Path, runs: Sequence[SweepRun]) -> None:
    first: dict[Path, SweepRun] = {}
    for run in runs:
        if run.directory is None:
            continue
        other = first.setdefault(run.directory, run)
        if other is not run:
            differ = [name for name, value in run.parameters.items() if other.parameters[name] != value]
            hint = next((f", by {{{name}}} for example" for name in differ if name in PLACEHOLDERS), "")
            raise ConfigError(
                f"{path}: command: {described(other.parameters)} and {described(run.parameters)} both write to "
                f"{run.directory}; --output-dir must tell them apart{hint}"
            )
