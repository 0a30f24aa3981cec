"""Sweeps as job arrays of Slurm: which runs are in its queue, and how more are submitted and cancelled.

`slurm/jobs.jsonl` in the directory of the sweep names the jobs that were submitted, with the key of each task. Slurm
alone knows what became of a job; `attempts` knows what became of a run.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emtoolkit.config.output_template import as_file_name
from emtoolkit.errors import ConfigError, UserError, first_line
from emtoolkit.json_files import parse_json
from emtoolkit.storage.atomic import write_file
from emtoolkit.storage.lock import lock_file
from emtoolkit.sweeps.attempts import described
from emtoolkit.sweeps.inputs import InputDigests
from emtoolkit.sweeps.plan import SweepPlan, SweepRun
from emtoolkit.sweeps.slurm_script import Task, array_script, repeated_script

# A controller that is busy answers after some seconds.
LOCK_SECONDS = 120.0
_FIELD = re.compile(r"(?:^|\s)(ArrayTaskId|JobState|Reason|BatchHost|StdOut)=(\S+)")


class SlurmError(UserError):
    """Slurm is not here, or has refused something."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A job array: its number, and the keys of the combinations of each task."""

    job: str
    tasks: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Queued:
    """A task in the queue: its name as in `1234_5`, its state such as `PENDING`, and why it waits."""

    task: str
    state: str
    reason: str

    @property
    def job(self) -> str:
        """The number of the array."""
        return self.task.partition("_")[0]


@dataclass(frozen=True, slots=True)
class Ended:
    """A task as Slurm remembers it: a state such as `FAILED`, its reason, the node, and the log."""

    state: str
    reason: str
    node: str
    log: Path


class SlurmJobs:
    """The jobs of the sweep in `directory`; `environment` finds the commands of Slurm."""

    def __init__(self, directory: Path, environment: Mapping[str, str] = os.environ) -> None:
        self.directory = directory / "slurm"
        self._record = self.directory / "jobs.jsonl"
        self._environment = environment

    def queue(self) -> dict[str, Queued]:
        """The tasks that wait or run, by the key of their combination.

        Raises:
            SlurmError: Slurm does not answer.
            ConfigError: the record of the jobs cannot be read.
        """
        submissions = {each.job: each for each in self._submissions()}
        if not submissions:
            return {}
        found: dict[str, Queued] = {}
        for line in self._run("squeue", "--me", "--array", "--noheader", "--format=%F %K %T %r").splitlines():
            job, index, state, *reason = line.split(maxsplit=3)
            if (known := submissions.get(job)) and index.isdecimal() and int(index) < len(known.tasks):
                task = Queued(f"{job}_{index}", state, "".join(reason))
                found |= dict.fromkeys(known.tasks[int(index)], task)
        return found

    def latest_tasks(self) -> dict[str, tuple[str, int]]:
        """The number of the array and of the task that was submitted last for each key.

        Raises:
            ConfigError: the record of the jobs cannot be read.
        """
        found: dict[str, tuple[str, int]] = {}
        for each in self._submissions():
            for index, keys in enumerate(each.tasks):
                found |= dict.fromkeys(keys, (each.job, index))
        return found

    def ended(self, job: str) -> dict[int, Ended]:
        """The ended tasks of the array `job`, by their number; Slurm forgets them within minutes."""
        try:
            lines = self._run("scontrol", "show", "job", job, "--oneliner").splitlines()
        except SlurmError:
            return {}
        fields = [dict(_FIELD.findall(line)) for line in lines]
        return {
            int(each["ArrayTaskId"]): Ended(
                each["JobState"],
                each.get("Reason", ""),
                each.get("BatchHost", ""),
                Path(each.get("StdOut", os.devnull)),
            )
            for each in fields
            if each.get("ArrayTaskId", "").isdecimal() and "JobState" in each
        }

    def submit(
        self, script: str, tasks: Sequence[Task], name: str, fewer: str = "with --count or in the sweep file"
    ) -> str:
        """Submit `script`, which runs `tasks`, and return the number of the job; `fewer` is how to take fewer tasks.

        Raises:
            SlurmError: Slurm refuses the script; nothing was submitted.
            ConfigError: the directory is not writable.
        """
        self._check_array_size(len(tasks), fewer)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            path = self.directory / f"{as_file_name(name)}.sh"
            write_file(path, script.encode())
            with self._record.open("a") as record:
                job = self._run("sbatch", "--parsable", str(path)).strip().partition(";")[0]
                record.write(json.dumps({"job": job, "tasks": [task.keys for task in tasks]}) + "\n")
                record.flush()
                os.fsync(record.fileno())
        except OSError as error:
            raise ConfigError(f"{self.directory}: cannot be written to ({error.strerror or error})") from error
        return job

    def cancel_all(self) -> list[Queued]:
        """Cancel the tasks that wait or run, and return them; those that run save their state and stop.

        Raises:
            SlurmError: Slurm does not answer.
        """
        tasks = {queued.task: queued for queued in self.queue().values()}
        self.cancel(tasks)
        return list(tasks.values())

    def cancel(self, jobs: Collection[str]) -> None:
        """Cancel jobs or tasks by their numbers.

        Raises:
            SlurmError: Slurm does not answer.
        """
        if jobs:
            self._run("scancel", *jobs)

    def newest(self, key: str) -> str | None:
        """The number of the job that was submitted last with the key `key`; None if none was."""
        return next(
            (each.job for each in reversed(self._submissions()) if any(key in keys for keys in each.tasks)), None
        )

    def _check_array_size(self, count: int, fewer: str) -> None:
        config = self._run("scontrol", "show", "config")
        limit = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE)
        if limit and count > int(limit[1]):
            raise SlurmError(
                f"{count} tasks are more than this cluster's MaxArraySize of {limit[1]}; take fewer {fewer}, and "
                "submit the rest when they have finished"
            )

    def _submissions(self) -> list[Submission]:
        try:
            lines = self._record.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(f"{self._record}: cannot be read ({error.strerror or error})") from error
        found = []
        for number, line in enumerate(lines, start=1):
            try:
                content = parse_json(line)
                found.append(Submission(str(content["job"]), tuple(tuple(map(str, keys)) for keys in content["tasks"])))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{self._record}: line {number} names no job ({first_line(error)})") from error
        return found

    def _run(self, *argv: str) -> str:
        try:
            done = subprocess.run(
                argv, env=dict(self._environment), capture_output=True, text=True, timeout=LOCK_SECONDS, check=False
            )
        except FileNotFoundError:
            raise SlurmError(
                f"{argv[0]}: the command is not here; run this on a login node of the cluster, or with --print to see "
                "the job script"
            ) from None
        except subprocess.TimeoutExpired:
            raise SlurmError(f"{argv[0]}: Slurm did not answer in {LOCK_SECONDS:g} s; try again later") from None
        if done.returncode != 0:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            message = "; ".join(line.removeprefix(f"{argv[0]}: ").removeprefix("error: ") for line in lines)
            raise SlurmError(f"{argv[0]}: {message or f'exit code {done.returncode}'}")
        return done.stdout


@dataclass(frozen=True, slots=True)
class Submitted:
    """The result of a submission: the number of the job, None if no run was due, and how many runs it has.

    `queued` runs were in the queue before; `settled` ones have finished, or failed and are not tried again.
    """

    job: str | None
    runs: int
    queued: int
    settled: int


def due_runs(plan: SweepPlan, queued: Mapping[str, Queued], *, retry_failed: bool) -> list[SweepRun]:
    """The runs that are neither finished, nor failed unless `retry_failed`, nor in the queue."""
    digests = InputDigests()
    return [
        run
        for run in plan.runs
        if run.key not in queued
        and (run.before.state != "failed" or retry_failed)
        and not run.is_finished(run.before, digests)
    ]


def tasks_of(runs: Sequence[SweepRun]) -> list[Task]:
    """One task for each run; the runs of one trajectory share one, because all but the first would wait in it."""
    groups: dict[str, list[SweepRun]] = {}
    for run in runs:
        groups.setdefault(run.group or run.key, []).append(run)
    return [
        Task(
            tuple(run.key for run in group),
            described(group[0].parameters) + (f", and {len(group) - 1} of its trajectory" if len(group) > 1 else ""),
        )
        for group in groups.values()
    ]


def script_of(
    plan: SweepPlan,
    tasks: Sequence[Task],
    *,
    options: Mapping[str, str | bool],
    parallel: int | None,
    further: Sequence[str] = (),
) -> str:
    """The job script that runs `tasks`; `further` are options of `emtoolkit sweep`, to find the runs again."""
    here = Path.cwd()
    return array_script(
        tasks,
        [sys.executable, "-m", "emtoolkit", "sweep", str(plan.path), *further, "--only"],
        name=f"emtoolkit-{plan.path.stem}",
        directory=here,
        logs=here / plan.directory / "slurm",
        options={**plan.slurm, **options},
        parallel=parallel,
    )


def collecting_script(command: Sequence[str], *, name: str, logs: Path, options: Mapping[str, str | bool]) -> str:
    """The job script that runs `command` once, in the directory of this call."""
    here = Path.cwd()
    return repeated_script(1, command, name=name, directory=here, logs=here / logs, options=options)


def submit_sweep(
    plan: SweepPlan,
    *,
    options: Mapping[str, str | bool],
    parallel: int | None,
    retry_failed: bool,
    further: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> Submitted:
    """Submit the runs that are due as one job array; runs that are in the queue are not submitted again.

    Raises:
        SlurmError: Slurm is not here, or refuses the job; nothing was submitted.
        ConfigError: the directory of the sweep is not writable.
    """
    jobs = SlurmJobs(plan.directory, environment)
    jobs.directory.mkdir(parents=True, exist_ok=True)
    # Two submissions at once would both submit all.
    lock = lock_file(jobs.directory / ".lock", timeout=LOCK_SECONDS)
    try:
        queued = jobs.queue()
        runs = due_runs(plan, queued, retry_failed=retry_failed)
        here = sum(run.key in queued for run in plan.runs)
        job = None
        if runs:
            tasks = tasks_of(runs)
            script = script_of(plan, tasks, options=options, parallel=parallel, further=further)
            job = jobs.submit(script, tasks, plan.path.stem)
        return Submitted(job, len(runs), here, len(plan.runs) - here - len(runs))
    finally:
        lock.release()


def agents_job(
    sweep: str, count: int, options: Mapping[str, str | bool], environment: Mapping[str, str] = os.environ
) -> tuple[str, SlurmJobs, list[Task]]:
    """A job script of `count` agents, each for one run of the W&B sweep `sweep`, and where it is submitted from.

    An agent that gets a signal passes it on, and waits for its run to save and stop.
    """
    name = as_file_name(sweep)
    jobs = SlurmJobs(Path("outputs/sweeps") / name, environment)
    here = Path.cwd()
    # `-f` passes signals on and `-t` waits so long, in seconds; without them the agent kills its run.
    command = [sys.executable, "-m", "wandb", "agent", "-f", "-t", "120", "--count", "1", sweep]
    script = repeated_script(
        count, command, name=f"emtoolkit-{name}", directory=here, logs=here / jobs.directory, options=options
    )
    return script, jobs, [Task((f"agent-{number}",), "") for number in range(count)]
