"""The job script that runs a sweep as a job array of Slurm; pure text. See https://slurm.schedmd.com/sbatch.html."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emtoolkit.errors import ConfigError, shown
from emtoolkit.paths import SCRATCH
from emtoolkit.stop_signals import ENDING, NOTICES

# Decided by the sweep itself.
_OWN = {
    "array": "the tasks are the runs of the sweep, and --parallel limits how many run at once",
    "chdir": "the tasks run in the directory where the sweep is started",
    "wrap": "the job script holds the command",
    "ntasks": "each run is one task; --nproc-per-run starts several processes in it",
    "nodes": "each run is on one node; --nproc-per-run starts several processes there",
}
# A save takes seconds; the rest is for the upload that has begun.
_DEFAULTS: Mapping[str, str | bool] = {"requeue": True, "open-mode": "append", "signal": "TERM@120"}
# The one option that is not of `sbatch`: a disk of the node, which the run itself expands.
SCRATCH_OPTION = "scratch"
_OPTION = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True, slots=True)
class Task:
    """One task of the array: the keys of its combinations, and their parameters for people."""

    keys: tuple[str, ...]
    described: str


def slurm_options(given: Mapping[str, Any] | str, place: str) -> dict[str, str | bool]:
    """Options of `sbatch` by name, from a mapping or from words such as `partition=gpu exclusive`.

    `sbatch` judges names and values. True is an option without a value, and False is left out.

    Raises:
        ConfigError: not a mapping or words, a value on several lines, or an option that the sweep decides.
    """
    if isinstance(given, str):
        try:
            words = shlex.split(given)
        except ValueError as error:
            raise ConfigError(f"{place}: {shown(given)} is not a list of options ({error})") from None
        pairs: list[tuple[Any, Any]] = [
            (name, value if equals else True) for name, equals, value in (word.partition("=") for word in words)
        ]
    elif isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        raise ConfigError(f"{place}: {shown(given)} is not a mapping of options of sbatch, such as partition: gpu")
    options: dict[str, str | bool] = {}
    for raw, value in pairs:
        name = str(raw).lstrip("-").replace("_", "-")
        if not _OPTION.fullmatch(name):
            raise ConfigError(
                f"{place}: {shown(raw)} is not an option of sbatch; give its long name, as in partition=gpu"
            )
        if name in _OWN:
            raise ConfigError(f"{place}.{name}: {_OWN[name]}; remove the option")
        if not isinstance(value, str | int | float) or "\n" in str(value):
            raise ConfigError(f"{place}.{name}: {shown(value)} is not the value of an option; give one line of text")
        if name == SCRATCH_OPTION and not (isinstance(value, str) and value.strip()):
            raise ConfigError(f"{place}.{name}: {shown(value)} is not a directory of the nodes, such as $TMPDIR")
        options[name] = value if isinstance(value, bool) else str(value)
    return options


def array_script(
    tasks: Sequence[Task],
    command: Sequence[str],
    *,
    name: str,
    directory: Path,
    logs: Path,
    options: Mapping[str, str | bool],
    parallel: int | None = None,
) -> str:
    """A job script whose task number N runs `command` with the keys of the N-th of `tasks` as its last word.

    Args:
        name: the name of the job.
        directory: where the command runs; every node must see it.
        logs: the directory of the logs, which exists when the job starts.
        options: options of `sbatch`; they win over the defaults.
        parallel: the largest number of tasks at the same time.
    """
    array = f"0-{len(tasks) - 1}" + ("" if parallel is None else f"%{parallel}")
    runs = ["", "runs=(", *(f"  {','.join(task.keys)}  # {task.described}" for task in tasks), ")"]
    words = [*map(shlex.quote, command), '"${runs[$SLURM_ARRAY_TASK_ID]}"']
    return _script(array, runs, words, name=name, directory=directory, logs=logs, options=options)


def repeated_script(
    count: int, command: Sequence[str], *, name: str, directory: Path, logs: Path, options: Mapping[str, str | bool]
) -> str:
    """A job script with `count` tasks that all run `command`; the other arguments are those of `array_script`."""
    words = list(map(shlex.quote, command))
    return _script(f"0-{count - 1}", [""], words, name=name, directory=directory, logs=logs, options=options)


def _script(
    array: str,
    before: Sequence[str],
    words: Sequence[str],
    *,
    name: str,
    directory: Path,
    logs: Path,
    options: Mapping[str, str | bool],
) -> str:
    scratch = options.get(SCRATCH_OPTION)
    options = {option: value for option, value in options.items() if option != SCRATCH_OPTION}
    own = {"job-name": name, "array": array, "output": str(logs / "%A_%a.log")}
    all_options: dict[str, str | bool] = {**own, **_DEFAULTS, **options}
    if requeues := all_options["requeue"] is not False and not all_options.get("no-requeue"):
        all_options.pop("no-requeue", None)
    else:
        # A cluster may requeue by default.
        all_options |= {"requeue": False, "no-requeue": True}
    lines = [
        "#!/usr/bin/env bash",
        *_directives(all_options),
        "",
        f"directory={shlex.quote(str(directory))}",
        *_ENTER,
        *([] if scratch is None else [f"export {SCRATCH}={shlex.quote(str(scratch))}"]),
        *before,
        *_CORES,
        f"srun --ntasks=1 --unbuffered {' '.join(words)}",
        *(_REQUEUE if requeues else ["exit $?"]),
        "",
    ]
    return "\n".join(lines)


def _directives(options: Mapping[str, str | bool]) -> list[str]:
    return [
        f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"
        for name, value in options.items()
        if value is not False
    ]


# The first word tells users and `--status` whose sentence it is.
_ENTER = [
    'if ! cd "$directory"; then',
    '  echo "emtoolkit: node ${SLURMD_NODENAME:-$(hostname)} does not see $directory; put the directory on a file '
    'system that every node sees" >&2',
    "  exit 2",
    "fi",
]
_CORES = [
    'if [[ -n "$SLURM_CPUS_PER_TASK" ]]; then',
    '  export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"',
    "fi",
]
_STOPPED = "|".join(str(128 + number) for number in sorted({*ENDING, *NOTICES}))
_REQUEUE = [
    "code=$?",
    "",
    "# A run that saved and stopped before its time limit continues later. Slurm itself requeues a preempted job, and",
    "# a cancelled job is not RUNNING any more.",
    "state=$(scontrol show job \"$SLURM_JOB_ID\" -o | grep -o 'JobState=[A-Z]*')",
    f"if [[ $code =~ ^({_STOPPED})$ && $state = JobState=RUNNING ]]; then",
    '  scontrol requeue "$SLURM_JOB_ID"',
    "  sleep 60",
    "fi",
    "exit $code",
]
