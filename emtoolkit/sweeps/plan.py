"""The plan of a sweep: each combination with its command, its output directory and its state so far."""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emtoolkit.config.output_template import as_file_name
from emtoolkit.config.sweep_directories import is_option, left_out, suffix
from emtoolkit.errors import ConfigError, UserError
from emtoolkit.launch import SWEEP_VARIABLES
from emtoolkit.sweeps.attempts import Attempt, Attempts, described, flat
from emtoolkit.sweeps.command import Word, args_json, command_of, with_environment
from emtoolkit.sweeps.inputs import InputDigests
from emtoolkit.sweeps.processes_per_run import launched
from emtoolkit.sweeps.search import Combination, Sweep, read_sweep
from emtoolkit.sweeps.trajectories import with_shared_trajectories
from emtoolkit.training.options import TrainOptions

if TYPE_CHECKING:
    from emtoolkit.config.sections import RunConfig

# `wandb agent` sets these variables; a run that inherited them would join the agent's sweep.
_AGENT_VARIABLES = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One combination of a sweep.

    `command` are the words of its command, `${envvar:NAME}` macros not yet replaced. `config` and `directory` are the
    run of an `emtoolkit train` and where it writes, None for other programs. `before` is the latest attempt so far.
    Runs of one `group` share one training, so they run one after another; None for a run that trains alone.
    """

    key: str
    parameters: Mapping[str, Any]
    command: Sequence[Word]
    log: Path
    json_file: Path
    config: "RunConfig | None"
    directory: Path | None
    before: Attempt
    group: str | None = None

    @property
    def argv(self) -> list[str]:
        """The words of the command as text."""
        return [word.text for word in self.command]

    @property
    def reads_json_file(self) -> bool:
        """Whether the command names `json_file`."""
        return str(self.json_file) in self.argv

    def is_finished(self, attempt: Attempt, digests: InputDigests) -> bool:
        """Whether `attempt` ended with exit code 0, its output directory exists, and its inputs are the same."""
        if attempt.state != "finished" or (self.directory is not None and not self.directory.is_dir()):
            return False
        if self.config is None or attempt.inputs is None:
            return True
        now = digests.of(self.config)
        return now is None or now == attempt.inputs


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """The runs of the sweep file `path`, their environment, and the directory of their attempts and logs.

    `slurm` are the options of `sbatch` in the file.
    """

    path: Path
    runs: tuple[SweepRun, ...]
    environment: Mapping[str, str]
    directory: Path
    processes_per_run: int = 1
    slurm: Mapping[str, str | bool] = field(default_factory=dict)

    def only(self, keys: Collection[str]) -> "SweepPlan":
        """The plan of the combinations `keys` alone.

        Raises:
            ConfigError: the sweep file describes no such combination any more.
        """
        runs = tuple(run for run in self.runs if run.key in keys)
        if missing := sorted(set(keys) - {run.key for run in runs}):
            raise ConfigError(
                f"{self.path}: no combination has the key {missing[0]!r}; the file has changed since the key was "
                "given, so start the sweep again"
            )
        return replace(self, runs=runs)

    def configs(self) -> "list[tuple[Mapping[str, Any], RunConfig]]":
        """The parameters, by dotted names, and the config of each run.

        Raises:
            ConfigError: a run is not an `emtoolkit train`.
        """
        configs: list[tuple[Mapping[str, Any], RunConfig]]
        configs = [(flat(run.parameters), run.config) for run in self.runs if run.config is not None]
        if len(configs) < len(self.runs):
            raise ConfigError(f"{self.path}: command: only runs of 'emtoolkit train' can be planned")
        return configs


def plan_sweep(
    path: Path,
    *,
    count: int | None = None,
    seed: int = 0,
    processes_per_run: int = 1,
    reuse: bool = True,
    environment: Mapping[str, str] = os.environ,
) -> SweepPlan:
    """Plan the sweep file at `path`: read it and the attempts of earlier calls; start and write nothing.

    Args:
        count: the largest number of runs; a random search needs it, or `run_cap` in the file.
        seed: the seed of a random search.
        processes_per_run: the number of processes that train together; more than 1 are started by `torchrun`.
        reuse: whether runs of one trajectory share one training, unless a run says no.
        environment: the environment that the runs inherit.

    Raises:
        UserError: the file or one of its commands is not valid, or two combinations write to the same directory.
    """
    sweep = read_sweep(path)
    if processes_per_run > 1:
        sweep = replace(sweep, command=launched(sweep.command, processes_per_run, str(path)))
    directory = Path("outputs/sweeps") / f"{as_file_name(path.stem)}-local"
    attempts = Attempts(directory)
    variables = _environment(sweep, environment)
    combinations = sweep.combinations(count=count, seed=seed)
    runs = [_plan_run(sweep, combination, directory / "logs", attempts, variables) for combination in combinations]
    runs = _in_own_directories(path, runs, variables)
    # Several processes that train together reuse nothing.
    shared = with_shared_trajectories(
        runs,
        reuse and processes_per_run == 1,
        lambda run, words: _with_config(replace(run, command=words), path, variables),
    )
    return SweepPlan(path, tuple(shared), variables, directory, processes_per_run, sweep.slurm)


def _plan_run(
    sweep: Sweep, combination: Combination, logs: Path, attempts: Attempts, environment: Mapping[str, str]
) -> SweepRun:
    parameters = combination.parameters
    values = "-".join(map(str, flat(parameters).values()))
    stem = logs / f"{as_file_name(values)}-{combination.key}"
    json_file = stem.with_name(f"{stem.name}.json")
    run = SweepRun(
        key=combination.key,
        parameters=parameters,
        command=command_of(sweep, parameters, json_file),
        log=stem.with_name(f"{stem.name}.log"),
        json_file=json_file,
        config=None,
        directory=None,
        before=attempts.get(combination.key) or Attempt(parameters),
    )
    run = _with_config(run, sweep.path, environment)
    if run.config is None:
        return run
    missing = left_out(run.config.template, parameters)
    # An option such as a constant dataset may be left out, and earlier versions knew no parameters but options. A key
    # of the config is shown from the first run on, so that more values of the key later move no directory.
    if all(map(is_option, missing)):
        return run
    return _in_directory(run, suffix(missing), sweep.path, environment)


def _with_config(run: SweepRun, path: Path, environment: Mapping[str, str]) -> SweepRun:
    """`run` with the config and the directory of its `emtoolkit train`, if its command is one."""
    # The file of the parameters is written when the run starts.
    words = [Word(args_json(run.parameters)) if word.text == str(run.json_file) else word for word in run.command]
    try:
        options = TrainOptions.from_command(with_environment(words, environment))
        if options is None:
            return run
        config = options.to_config(environment)
        return replace(run, config=config, directory=config.directory(environment))
    except UserError as error:
        raise ConfigError(f"{path}: {described(run.parameters)}: {error}") from None


def _in_directory(run: SweepRun, end: str, path: Path, environment: Mapping[str, str]) -> SweepRun:
    """`run` in a directory whose name ends with `end`."""
    if not end or run.config is None:
        return run
    words = list(run.command)
    for at, word in enumerate(words):
        name, equals, _ = word.text.partition("=")
        if word.has_macros and name in ("--output-dir", "--output_dir"):
            value = at if equals else at + 1
            words[value] = replace(words[value], text=f"{words[value].text.rstrip('/')}{end}")
            break
    else:
        words.append(Word(f"--output-dir={run.config.template.rstrip('/')}{end}"))
    return _with_config(replace(run, command=words), path, environment)


def _in_own_directories(path: Path, runs: Sequence[SweepRun], environment: Mapping[str, str]) -> list[SweepRun]:
    """`runs` with a digest at the end of each directory that several of them would write to.

    Raises:
        ConfigError: two runs write to one directory all the same, because a parameter names it.
    """
    count = Counter(run.directory for run in runs)
    own = [
        _in_directory(run, suffix(left_out(run.config.template, run.parameters) or run.parameters), path, environment)
        if run.config is not None and count[run.directory] > 1 and not _names_directory(run.parameters)
        else run
        for run in runs
    ]
    first: dict[Path, SweepRun] = {}
    for run in own:
        if run.directory is not None and (writer := first.setdefault(run.directory, run)) is not run:
            raise ConfigError(
                f"{path}: command: {described(writer.parameters)} and {described(run.parameters)} both write to "
                f"{run.directory}; --output-dir must tell them apart, with {{set}} for example"
            )
    return own


def _names_directory(parameters: Mapping[str, Any]) -> bool:
    return any(name.replace("-", "_") == "output_dir" for name in parameters)


def _environment(sweep: Sweep, environment: Mapping[str, str]) -> dict[str, str]:
    # A sweep in a run of another one has its own place on W&B.
    not_inherited = (*_AGENT_VARIABLES, *SWEEP_VARIABLES.values())
    variables = {name: value for name, value in environment.items() if name not in not_inherited}
    defaults = {"WANDB_MODE": "offline", "WANDB_PROJECT": sweep.project, "WANDB_ENTITY": sweep.entity}
    for name, value in defaults.items():
        if value is not None and not variables.get(name):
            variables[name] = value
            if name in SWEEP_VARIABLES:
                variables[SWEEP_VARIABLES[name]] = value
    return variables
