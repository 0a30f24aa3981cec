"""The state of each run of a sweep that Slurm runs: what the queue says of it, and what the run itself recorded."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emtoolkit.sweeps.attempts import Attempts
from emtoolkit.sweeps.plan import SweepPlan, SweepRun
from emtoolkit.sweeps.slurm import Queued, SlurmJobs

State = Literal["waiting", "running", "finished", "failed", "interrupted", "not submitted"]

_STEP = re.compile(r"step ([\d,]+) of ([\d,]+)")
_LOG_TAIL_BYTES = 20_000


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
    return [_status(run, queue.get(run.key), attempts) for run in plan.runs]


def _status(run: SweepRun, queued: Queued | None, attempts: Attempts) -> RunStatus:
    attempt = attempts.get(run.key) or run.before
    step = step_of(run.log) if attempt.number else None
    if attempt.state == "finished":
        return RunStatus(run, "finished", attempt.number, step=step)
    if queued is not None and queued.state == "PENDING":
        return RunStatus(run, "waiting", attempt.number, queued.task, queued.reason, step, attempt.error)
    if queued is not None or (attempt.state == "running" and attempts.is_claimed(run.key)):
        return RunStatus(run, "running", attempt.number, queued.task if queued is not None else None, step=step)
    if attempt.state == "waiting":
        return RunStatus(run, "not submitted", attempt.number)
    # A record that says running without anybody who runs it is that of a node that is gone.
    state: State = "failed" if attempt.state == "failed" else "interrupted"
    return RunStatus(run, state, attempt.number, step=step, error=attempt.error)


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
