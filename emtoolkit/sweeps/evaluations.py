"""Evaluations as job arrays of Slurm: one task for each range of steps, and a job that collects the results.

The ranges are a sweep, in a file of its own in `outputs/sweeps`, so that tasks are submitted, recorded and cancelled as
the runs of any sweep. The results on disk decide which steps are left.
"""

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from emtoolkit.errors import UserError
from emtoolkit.schedules.selection import equal_parts, named_by, spec_of
from emtoolkit.storage.atomic import write_file
from emtoolkit.storage.lock import lock_file
from emtoolkit.sweeps.attempts import Attempts
from emtoolkit.sweeps.plan import SweepPlan, plan_sweep
from emtoolkit.sweeps.slurm import LOCK_SECONDS, Queued, SlurmJobs, collecting_script, script_of, tasks_of
from emtoolkit.sweeps.slurm_script import Task
from emtoolkit.sweeps.slurm_status import RunStatus, status_of
from emtoolkit.yaml_files import read_yaml

# The key of the collecting job among the tasks; other keys are digests.
_COLLECT = "collect"
_HEADER = "# The ranges of steps that were submitted by: emtoolkit evaluate ... --on slurm\n"


@dataclass(frozen=True, slots=True)
class SlurmEvaluation:
    """An evaluation of `steps` (ascending), of which `done` have results; `all_steps` are those of the trajectory.

    `name` is the stem of its files. `command` are the words of `emtoolkit evaluate` but for the steps, `collect` those
    of the call that collects; none where there is nothing to collect.
    """

    name: str
    command: tuple[str, ...]
    collect: tuple[str, ...]
    steps: tuple[int, ...]
    all_steps: tuple[int, ...]
    done: frozenset[int] = frozenset()

    @property
    def path(self) -> Path:
        """The sweep file of the ranges."""
        return Path("outputs/sweeps") / f"{self.name}.yaml"

    @property
    def jobs_directory(self) -> Path:
        """The directory of the sweep."""
        return Path("outputs/sweeps") / f"{self.name}-local"


@dataclass(frozen=True, slots=True)
class SubmittedEvaluation:
    """The result of a submission: the array with each task's steps, and the job that collects; None if none was due.

    `queued` steps were in the queue before.
    """

    job: str | None
    collecting: str | None
    tasks: tuple[tuple[int, ...], ...]
    queued: int


def submit_evaluation(
    evaluation: SlurmEvaluation,
    *,
    options: Mapping[str, str | bool],
    parallel: int | None,
    parts: int,
    environment: Mapping[str, str] = os.environ,
) -> SubmittedEvaluation:
    """Submit the steps that have no results and are not in the queue, in `parts` ranges of the evaluation.

    Raises:
        SlurmError: Slurm is not here, or refuses a job; nothing was submitted.
        ConfigError: a file cannot be read or written.
    """
    jobs = SlurmJobs(evaluation.jobs_directory, environment)
    jobs.directory.mkdir(parents=True, exist_ok=True)
    # Two submissions at once would both submit all.
    lock = lock_file(jobs.directory / ".lock", timeout=LOCK_SECONDS)
    try:
        queue = jobs.queue()
        queued = _queued_steps(evaluation, queue)
        due = _due(evaluation, parts, queued)
        if not due:
            return SubmittedEvaluation(None, None, (), len(queued))
        plan = _with_ranges(evaluation, due)
        attempts = Attempts(plan.directory)
        for run in plan.runs:
            attempts.renew(run.key)
        tasks = tasks_of(plan.runs)
        script = script_of(plan, tasks, options=options, parallel=parallel)
        array = jobs.submit(script, tasks, evaluation.name, "with --split")
        if not evaluation.collect:
            return SubmittedEvaluation(array, None, tuple(due), len(queued))
        try:
            before = {each.job for key, each in queue.items() if key != _COLLECT}
            script = _collecting(evaluation, options, sorted({array, *before}))
            collecting = jobs.submit(script, [Task((_COLLECT,), "")], f"{evaluation.name}-collect")
        except UserError:
            jobs.cancel([array])
            raise
        if (earlier := queue.get(_COLLECT)) is not None and earlier.state == "PENDING":
            jobs.cancel([earlier.job])
        return SubmittedEvaluation(array, collecting, tuple(due), len(queued))
    finally:
        lock.release()


def scripts_of(
    evaluation: SlurmEvaluation, *, options: Mapping[str, str | bool], parallel: int | None, parts: int
) -> str:
    """The two job scripts, of the array and of the job that collects, with the file that the tasks read written."""
    due = _due(evaluation, parts, ())
    if not due:
        return ""
    plan = _with_ranges(evaluation, due)
    script = script_of(plan, tasks_of(plan.runs), options=options, parallel=parallel)
    if not evaluation.collect:
        return script
    return f"{script}\n# Another job, in place of JOB the number of the one above:\n" + _collecting(
        evaluation, options, ["JOB"]
    )


def status_of_evaluation(evaluation: SlurmEvaluation, jobs: SlurmJobs) -> list[RunStatus]:
    """The state of the ranges that were submitted last, in the order of their steps.

    Raises:
        SlurmError: Slurm does not answer.
        ConfigError: a record cannot be read.
    """
    if not evaluation.path.exists():
        return []
    found: list[RunStatus] = []
    covered: set[int] = set()
    for each in reversed(status_of(plan_sweep(evaluation.path), jobs)):
        steps = set(_steps_of(each, evaluation))
        if steps <= covered:
            continue
        covered |= steps
        if each.state not in ("waiting", "running"):
            if steps <= evaluation.done:
                each = replace(each, state="finished", error=None)
            elif each.state == "finished":
                each = replace(each, state="not submitted")
        found.append(each)
    return sorted(found, key=lambda each: _steps_of(each, evaluation))


def finished_steps(evaluation: SlurmEvaluation) -> frozenset[int]:
    """The steps of the ranges whose tasks have finished.

    Raises:
        ConfigError: a record cannot be read.
    """
    if not evaluation.path.exists():
        return frozenset()
    runs = [run for run in plan_sweep(evaluation.path).runs if run.before.state == "finished"]
    return frozenset(step for run in runs for step in named_by(str(run.parameters["steps"]), evaluation.steps))


def not_submitted(evaluation: SlurmEvaluation, states: Sequence[RunStatus]) -> tuple[int, ...]:
    """The steps without results that none of `states` has."""
    covered = {step for each in states for step in _steps_of(each, evaluation)}
    return tuple(step for step in evaluation.steps if step not in covered and step not in evaluation.done)


def collecting_log(evaluation: SlurmEvaluation, jobs: SlurmJobs) -> tuple[Path, Queued | None] | None:
    """The log of the newest job that collects, and its place in the queue; None if none was submitted."""
    job = jobs.newest(_COLLECT)
    return None if job is None else (jobs.directory / f"{job}_0.log", jobs.queue().get(_COLLECT))


def _steps_of(status: RunStatus, evaluation: SlurmEvaluation) -> tuple[int, ...]:
    return named_by(str(status.run.parameters["steps"]), evaluation.steps)


def _queued_steps(evaluation: SlurmEvaluation, queue: Mapping[str, Queued]) -> frozenset[int]:
    if not evaluation.path.exists():
        return frozenset()
    specs = [str(run.parameters["steps"]) for run in plan_sweep(evaluation.path).runs if run.key in queue]
    return frozenset(step for spec in specs for step in named_by(spec, evaluation.steps))


def _due(evaluation: SlurmEvaluation, parts: int, queued: Collection[int]) -> list[tuple[int, ...]]:
    """Equal parts of the steps, without what has results or is in the queue: a part that failed is submitted again."""
    left = (
        tuple(step for step in part if step not in evaluation.done and step not in queued)
        for part in equal_parts(evaluation.steps, parts)
    )
    return [part for part in left if part]


def _with_ranges(evaluation: SlurmEvaluation, due: Sequence[Sequence[int]]) -> SweepPlan:
    """The plan of the ranges `due`, which are the last ones in the sweep file from now on."""
    specs = [spec_of(part, evaluation.all_steps) for part in due]
    path = evaluation.path
    known = read_yaml(path)["parameters"]["steps"]["values"] if path.exists() else []
    content = {
        "method": "grid",
        "command": [sys.executable, "-m", "emtoolkit", "evaluate", *evaluation.command, "${args}"],
        "parameters": {"steps": {"values": [*(spec for spec in known if spec not in specs), *specs]}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, (_HEADER + yaml.safe_dump(content, sort_keys=False, default_style='"')).encode())
    plan = plan_sweep(path)
    return replace(plan, runs=tuple(run for run in plan.runs if run.parameters["steps"] in specs))


def _collecting(evaluation: SlurmEvaluation, options: Mapping[str, str | bool], after: Sequence[str]) -> str:
    # What was evaluated is worth collecting where a task has failed; and Slurm keeps a job whose `afterok` can no
    # longer be met in the queue for ever.
    dependency = f"afterany:{':'.join(after)}"
    return collecting_script(
        [sys.executable, "-m", "emtoolkit", "evaluate", *evaluation.collect],
        name=f"emtoolkit-{evaluation.name}-collect",
        logs=evaluation.jobs_directory / "slurm",
        options={**options, "dependency": dependency},
    )
