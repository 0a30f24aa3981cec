"""Run the combinations of a sweep, some at a time; several processes that run one sweep share its combinations."""

import os
import re
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.errors import UserError
from emtoolkit.progress import Progress
from emtoolkit.stop_signals import ENDING, NOTICES
from emtoolkit.storage.atomic import write_file
from emtoolkit.sweeps.attempts import Attempt, Attempts, Claim, State
from emtoolkit.sweeps.command import args_json, as_typed, with_environment
from emtoolkit.sweeps.gpus import GpuPool, GpuShare, TakenGpus
from emtoolkit.sweeps.inputs import InputDigests
from emtoolkit.sweeps.plan import SweepPlan, SweepRun
from emtoolkit.sweeps.processes import Processes
from emtoolkit.sweeps.slurm_task import is_at_time_limit
from emtoolkit.sweeps.time_limits import after_stop, carried_over, kind_of

# The last line of a log is not always the error: W&B prints after an exception.
OWN_PREFIX = "emtoolkit: "
_ERROR_LINE = re.compile(rf"{OWN_PREFIX}|[\w.]*(Error|Exception|Interrupt|Exit)\b")
_LONGEST_ERROR = 300
_LOG_TAIL_BYTES = 100_000
# The exit codes of a run that a signal stopped. Nothing is wrong with a run that somebody else killed.
_INTERRUPTED = frozenset(code for number in (*ENDING, *NOTICES, signal.SIGKILL) for code in (-number, 128 + number))
# How soon a run that another process has finished or left is noticed.
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """The final attempt of one combination and its number of checkpoints, None where its directory is unknown."""

    run: SweepRun
    attempt: Attempt
    checkpoints: int | None


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The outcomes in the order of the sweep. `signal_number` is the signal that ended the sweep early, else None.

    `left_to_others` says that other processes run the combinations that have not ended.
    """

    outcomes: tuple[Outcome, ...]
    signal_number: int | None
    left_to_others: bool = False

    @property
    def all_finished(self) -> bool:
        """Whether every combination has finished."""
        return all(outcome.attempt.state == "finished" for outcome in self.outcomes)

    @property
    def is_interrupted(self) -> bool:
        """Whether a signal ended the sweep, and the same command continues a combination."""
        ended = ("finished", "failed")
        return self.signal_number is not None and any(each.attempt.state not in ended for each in self.outcomes)


def run_sweep(
    plan: SweepPlan,
    *,
    jobs: int,
    retry_failed: bool,
    progress: Progress,
    gpus: GpuShare | None = None,
    waits: bool = True,
) -> SweepResult:
    """Run the combinations that are not finished, `jobs` at a time; failed ones only with `retry_failed`.

    With `gpus` a run starts when GPUs are free for it, and sees no others.

    Combinations that another process runs meanwhile are waited for, and taken over if that process stops. A signal,
    such as SIGTERM or SIGUSR1, makes the active runs save and stop; the next call continues them.

    Raises:
        UserError: the record of a combination cannot be read or written, or a GPU not be reserved.
    """
    attempts = Attempts(plan.directory)
    with Processes() as processes:
        pool = None if gpus is None else GpuPool(gpus)
        sweep = _Sweep(plan, attempts, processes, jobs, pool, retry_failed=retry_failed)
        sweep.run(progress, waits=waits)
        signal_number = processes.signals[0] if processes.signals else None
    outcomes = tuple(
        Outcome(run, attempts.get(run.key) or run.before, _count_checkpoints(run.directory)) for run in plan.runs
    )
    return SweepResult(outcomes, signal_number, left_to_others=signal_number is None and sweep.has_left)


def _with_thread_limit(environment: Mapping[str, str], count: int) -> Mapping[str, str]:
    """`environment` with the cores divided among `count` programs: two that use all cores slow each other down."""
    threads = max(1, (os.cpu_count() or 1) // count)
    return {"OMP_NUM_THREADS": str(threads), **environment} if count > 1 else environment


@dataclass(frozen=True, slots=True)
class _Active:
    """A run of this process; `offset` is where its part of the log begins, in bytes, `attempt` that of its start."""

    run: SweepRun
    claim: Claim
    attempt: Attempt
    offset: int
    gpus: TakenGpus | None


class _Sweep:
    """The combinations that are left to run, and those that this process runs."""

    def __init__(
        self,
        plan: SweepPlan,
        attempts: Attempts,
        processes: Processes,
        jobs: int,
        gpus: GpuPool | None,
        *,
        retry_failed: bool,
    ) -> None:
        self._attempts = attempts
        self._processes = processes
        self._environment = _with_thread_limit(plan.environment, jobs * plan.processes_per_run)
        self._jobs = jobs
        self._gpus = gpus
        self._waits_for_gpus = False
        self._digests = InputDigests()
        self._group_sizes = Counter(run.group for run in plan.runs)
        # Two processes that retry failed runs retry each once.
        self._retried = {run.key: run.before.number for run in plan.runs} if retry_failed else {}
        self._left = [run for run in plan.runs if not self._is_settled(run)]
        self._active: dict[str, _Active] = {}
        self._total = len(self._left)
        self._failed = 0

    def run(self, progress: Progress, *, waits: bool) -> None:
        """Run the combinations until each has ended here, or elsewhere if this process `waits`, or until a signal."""
        while self._active or (self._left and not self._processes.signals):
            elsewhere = self._start_due()
            done = self._total - len(self._left) - len(self._active)
            progress(self._status(elsewhere), done, self._total)
            if not self._active and (not self._left or (not waits and elsewhere == len(self._left))):
                return
            if (ended := self._processes.next_ended(timeout=_SECONDS_BETWEEN_LOOKS)) is not None:
                self._end(*ended)

    @property
    def has_left(self) -> bool:
        """Whether a combination has neither been run here nor ended elsewhere."""
        return bool(self._left)

    def _is_settled(self, run: SweepRun) -> bool:
        attempt = self._attempts.get(run.key)
        if attempt is None:
            return False
        if attempt.state == "failed":
            return attempt.number != self._retried.get(run.key)
        return run.is_finished(attempt, self._digests)

    def _start_due(self) -> int:
        """Start what is due and free; return how many runs other processes have."""
        elsewhere = 0
        self._waits_for_gpus = False
        for run in list(self._left):
            if self._processes.signals or len(self._processes) >= self._jobs:
                break
            if run.group is not None and any(active.run.group == run.group for active in self._active.values()):
                # It takes what the training of its trajectory saves, and would wait for the training.
                continue
            gpus = None if self._gpus is None else self._gpus.take()
            if self._gpus is not None and gpus is None:
                self._waits_for_gpus = True
                break
            claim = None if (settled := self._is_settled(run)) else self._attempts.claim(run.key)
            if claim is None:
                elsewhere += not settled
            elif settled := self._is_settled(run):
                # Another process has ended the run in the meantime.
                claim.release()
            else:
                self._start(run, claim, gpus)
            if gpus is not None and run.key not in self._active:
                gpus.give_back()
            if settled or claim is not None:
                self._left.remove(run)
        return elsewhere

    def _start(self, run: SweepRun, claim: Claim, gpus: TakenGpus | None) -> None:
        environment = self._environment if gpus is None else gpus.environment(self._environment)
        before = self._attempts.get(run.key) or run.before
        inputs = None if run.config is None else self._digests.of(run.config)
        attempt = carried_over(Attempt(run.parameters, "running", inputs=inputs, number=before.number + 1), before)
        run.log.parent.mkdir(parents=True, exist_ok=True)
        if run.reads_json_file:
            write_file(run.json_file, args_json(run.parameters).encode())
        with run.log.open("ab") as log:
            log.write(f"$ {as_typed(run.command, environment)}\n".encode())
            offset = log.tell()
        claim.update(attempt)
        argv = with_environment(run.command, environment)
        inherited = (claim.descriptor, *(gpus.descriptors if gpus is not None else ()))
        try:
            # All but one of the runs that share a training have little to do but to import.
            fork = run.group is not None and self._group_sizes[run.group] > 1
            self._processes.start(run.key, argv, environment, run.log, inherited, fork=fork)
        except OSError as error:
            self._failed += 1
            sentence = f"cannot be started ({error.strerror or error}: {error.filename})"
            claim.update(replace(attempt, state="failed", error=sentence))
            claim.release()
        else:
            self._active[run.key] = _Active(run, claim, attempt, offset, gpus)

    def _end(self, key: str, exit_code: int) -> None:
        active = self._active.pop(key)
        attempt = _ended(active, exit_code, stopped=bool(self._processes.signals))
        if attempt.state == "interrupted" and self._processes.signals:
            kind = kind_of(active.run.argv, trains=active.run.config is not None)
            attempt = after_stop(attempt, kind, by_time_limit=lambda: is_at_time_limit(self._environment))
        self._failed += attempt.state == "failed"
        active.claim.update(attempt)
        active.claim.release()
        if active.gpus is not None:
            active.gpus.give_back()

    def _status(self, elsewhere: int) -> str:
        if self._processes.signals:
            return f"waiting for {len(self._active)} to save and stop"
        others = f", {elsewhere} elsewhere" if elsewhere else ""
        waits = ", waiting for a free GPU" if self._waits_for_gpus and len(self._active) < self._jobs else ""
        return f"{len(self._active)} running{others}{waits}, {self._failed} failed"


def _ended(active: _Active, exit_code: int, *, stopped: bool) -> Attempt:
    state: State = "finished" if exit_code == 0 else "interrupted" if stopped else "failed"
    # A run that somebody else stopped by a signal has saved its state, too.
    if exit_code in _INTERRUPTED:
        state = "interrupted"
    error = None if state == "finished" else _error_from_log(active.run.log, active.offset, exit_code)
    return replace(active.attempt, state=state, exit_code=exit_code, error=error)


def _error_from_log(log: Path, offset: int, exit_code: int) -> str:
    """How a run ended, and the last line of its log that looks like an error, or else its last line."""
    with log.open("rb") as file:
        file.seek(max(offset, log.stat().st_size - _LOG_TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip() and not line.startswith("wandb: ")]
    # A progress bar may precede the message on the same line.
    lines = [line[max(0, line.rfind(OWN_PREFIX)) :] for line in lines]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    last = (errors or lines or [""])[-1].removeprefix(OWN_PREFIX)[:_LONGEST_ERROR]
    how = f"killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
    return f"{how}: {last}" if last else how


def _count_checkpoints(directory: Path | None) -> int | None:
    if directory is None:
        return None
    try:
        return sum(info.complete for info in list_checkpoints(directory))
    except UserError:
        # The directory is missing or holds something else; the outcome gives the reason.
        return 0
