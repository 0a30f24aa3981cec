"""The plan of a sweep: each combination with its command, its output directory and its state so far."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emtoolkit.config.output_template import PLACEHOLDERS, as_file_name
from emtoolkit.errors import ConfigError, UserError
from emtoolkit.sweeps.command import command_of, with_environment
from emtoolkit.sweeps.search import Combination, Sweep, read_sweep
from emtoolkit.sweeps.sweep_file import Attempt, SweepFile, described
from emtoolkit.training.options import TrainOptions

if TYPE_CHECKING:
    from emtoolkit.config.sections import RunConfig

# `wandb agent` sets these variables; a run that inherited them would join the agent's sweep.
_AGENT_VARIABLES = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One combination of a sweep.

    `argv` is the command, `${envvar:NAME}` macros not yet replaced. `config` and `directory` are the run of an
    `emtoolkit train` and where it writes, None for other programs. `before` is the latest attempt so far.
    """

    key: str
    parameters: Mapping[str, Any]
    argv: list[str]
    log: Path
    json_file: Path
    config: "RunConfig | None"
    directory: Path | None
    before: Attempt

    @property
    def is_finished(self) -> bool:
        """Whether the run ended with exit code 0 and its output directory still exists."""
        return self.before.state == "finished" and (self.directory is None or self.directory.is_dir())


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """The runs of the sweep file `path`, their environment, and the directory of `sweep.json` and of the logs."""

    path: Path
    runs: tuple[SweepRun, ...]
    environment: Mapping[str, str]
    directory: Path

    def configs(self) -> "list[tuple[Mapping[str, Any], RunConfig]]":
        """The parameters and the config of each run.

        Raises:
            ConfigError: a run is not an `emtoolkit train`.
        """
        configs = [(run.parameters, run.config) for run in self.runs if run.config is not None]
        if len(configs) < len(self.runs):
            raise ConfigError(f"{self.path}: command: only runs of 'emtoolkit train' can be planned")
        return configs


def plan_sweep(
    path: Path, *, count: int | None = None, seed: int = 0, environment: Mapping[str, str] = os.environ
) -> SweepPlan:
    """Plan the sweep file at `path`: read it and the `sweep.json` of earlier calls; start and write nothing.

    Args:
        count: the largest number of runs; a random search needs it, or `run_cap` in the file.
        seed: the seed of a random search.
        environment: the environment that the runs inherit.

    Raises:
        UserError: the file or one of its commands is not valid, or two combinations write to the same directory.
    """
    sweep = read_sweep(path)
    directory = Path("outputs/sweeps") / f"{as_file_name(path.stem)}-local"
    states = SweepFile(directory)
    variables = _environment(sweep, environment)
    runs = [
        _plan_run(sweep, combination, directory / "logs", states, variables)
        for combination in sweep.combinations(count=count, seed=seed)
    ]
    _check_directories_differ(path, runs)
    return SweepPlan(path, tuple(runs), variables, directory)


def _plan_run(
    sweep: Sweep, combination: Combination, logs: Path, states: SweepFile, environment: Mapping[str, str]
) -> SweepRun:
    parameters = combination.parameters
    values = "-".join(map(str, parameters.values()))
    stem = logs / f"{as_file_name(values)}-{combination.key}"
    json_file = stem.with_name(f"{stem.name}.json")
    argv = command_of(sweep, parameters, json_file)
    try:
        options = TrainOptions.from_command(with_environment(argv, environment))
        config = None if options is None else options.to_config()
        directory = None if config is None else config.directory(environment)
    except UserError as error:
        raise ConfigError(f"{sweep.path}: {described(parameters)}: {error}") from None
    return SweepRun(
        key=combination.key,
        parameters=parameters,
        argv=argv,
        log=stem.with_name(f"{stem.name}.log"),
        json_file=json_file,
        config=config,
        directory=directory,
        before=states.get(combination.key) or Attempt(parameters),
    )


def _environment(sweep: Sweep, environment: Mapping[str, str]) -> dict[str, str]:
    variables = {name: value for name, value in environment.items() if name not in _AGENT_VARIABLES}
    defaults = {"WANDB_MODE": "offline", "WANDB_PROJECT": sweep.project, "WANDB_ENTITY": sweep.entity}
    for name, value in defaults.items():
        if value is not None and not variables.get(name):
            variables[name] = value
    return variables


def _check_directories_differ(path: Path, runs: Sequence[SweepRun]) -> None:
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
