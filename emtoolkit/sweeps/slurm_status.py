"""The state of each run of a sweep that Slurm runs: what the queue says of it, and what the run itself recorded."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emtoolkit.errors import shortened
from emtoolkit.sweeps.attempts import Attempts
from emtoolkit.sweeps.plan import SweepPlan, SweepRun
from emtoolkit.sweeps.runner import OWN_PREFIX
from emtoolkit.sweeps.slurm import Ended, Queued, SlurmJobs

State = Literal["waiting", "running", "finished", "failed", "interrupted", "not submitted"]

_STEP = re.compile(r"step ([\d,]+) of ([\d,]+)")
_LOG_TAIL_BYTES = 20_000
# Slurm's reason where a node cannot open the log of a task.
_NO_LAUNCH = "JobLaunchFailure"


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run: its state, its task in the queue if it has one, and the step that it has reached.

    `starts` is how often the run was started; each start after the first follows a requeue, a failure or a stop.
    """

    run: SweepRun
    state: State
    starts: int
    task: str | None = None
    reason: str = ""
    step: tuple[int, int] | None = None
    error: str | None = None


def status_of(plan: SweepPlan, jobs: SlurmJobs) -> list[RunStatus]:
    """The state of each run of `plan`.

    Raises:
        SlurmError: Slurm does not answer.
        ConfigError: a record of the sweep cannot be read.
    """
    queue = jobs.queue()
    attempts = Attempts(plan.directory)
    ends = _Ends(jobs)
    return [_status(run, queue.get(run.key), attempts, ends) for run in plan.runs]


def _status(run: SweepRun, queued: Queued | None, attempts: Attempts, ends: "_Ends") -> RunStatus:
    attempt = attempts.get(run.key) or run.before
    step = step_of(run.log) if attempt.number else None
    if attempt.state == "finished":
        return RunStatus(run, "finished", attempt.number, step=step)
    if queued is not None and queued.state == "PENDING":
        return RunStatus(run, "waiting", attempt.number, queued.task, queued.reason, step, attempt.error)
    if queued is not None or (attempt.state == "running" and attempts.is_claimed(run.key)):
        return RunStatus(run, "running", attempt.number, queued.task if queued is not None else None, step=step)
    if attempt.state == "failed":
        return RunStatus(run, "failed", attempt.number, step=step, error=attempt.error)
    if attempt.state == "waiting":
        state, why = ends.before_start(run.key)
        return RunStatus(run, state, attempt.number, error=why)
    # A run that is recorded as running was killed.
    error = attempt.error if attempt.state == "interrupted" else ends.of_killed(run.key)
    return RunStatus(run, "interrupted", attempt.number, step=step, error=error)


class _Ends:
    """How tasks ended that recorded nothing: what Slurm remembers of them, and what their logs say."""

    def __init__(self, jobs: SlurmJobs) -> None:
        self._jobs = jobs
        self._tasks = jobs.latest_tasks()
        self._ended: dict[str, dict[int, Ended]] = {}

    def before_start(self, key: str) -> tuple[State, str | None]:
        """The state of the last task of `key`, which ended before its run began."""
        if key not in self._tasks:
            return "not submitted", None
        name, ended, log = self._last(key)
        if ended is not None and ended.state == "CANCELLED":
            return "not submitted", None
        if lines := _lines(log):
            own = [line.removeprefix(OWN_PREFIX) for line in lines if line.startswith(OWN_PREFIX)]
            # The last line of `srun` is an exit code, and the one before says why.
            errors = [line for line in lines if "error:" in line and "Exited with exit code" not in line]
            return "failed", f"{name}: {shortened((own or errors or lines)[-1])}"
        place = self._jobs.directory.resolve().parent
        if ended is None:
            return "not submitted", (
                f"{name} left the queue without a log: it was cancelled while it waited, or its node does not see "
                f"{place}"
            )
        if ended.reason != _NO_LAUNCH:
            return "failed", f"{name} ended before its run began ({ended.state}, {ended.reason}), and left no log"
        return "failed", (
            f"{name}: node {ended.node} cannot write the log ({ended.state}, {ended.reason}); check that the node sees "
            f"{place}, or leave the node out with --slurm exclude={ended.node}"
        )

    def of_killed(self, key: str) -> str:
        """How the last task of `key` ended, whose run began and recorded no end."""
        if key not in self._tasks:
            return "killed before its end was recorded"
        name, ended, log = self._last(key)
        slurm = "" if ended is None else f" (for Slurm {ended.state})"
        last = "".join(f": {shortened(line)}" for line in _lines(log)[-1:])
        return f"{name} was killed before its end was recorded{slurm}{last}"

    def _last(self, key: str) -> tuple[str, Ended | None, Path]:
        job, index = self._tasks[key]
        if job not in self._ended:
            self._ended[job] = self._jobs.ended(job)
        name, ended = f"{job}_{index}", self._ended[job].get(index)
        log = self._jobs.directory / f"{name}.log"
        # `output` may be an option of the submission.
        return f"task {name}", ended, log if ended is None or log.exists() else ended.log


def _lines(log: Path) -> list[str]:
    """The last lines of the log of a task that are not empty; none where there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            return [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return []


def step_of(log: Path) -> tuple[int, int] | None:
    """The step that the log of a training told last, and the last step; None if the log tells none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            found = _STEP.findall(file.read().decode(errors="replace"))
    except OSError:
        return None
    if not found:
        return None
    step, total = (int(number.replace(",", "")) for number in found[-1])
    return step, total
