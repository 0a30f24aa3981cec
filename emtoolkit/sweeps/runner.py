"""Runs the combinations of a sweep, some at a time, and remembers what became of each."""

import os
import re
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.errors import ConfigError, UserError
from emtoolkit.storage.atomic import remove_temporaries, write_file
from emtoolkit.storage.lock import InUseError, lock_directory
from emtoolkit.sweeps.command import args_json, as_typed, with_environment
from emtoolkit.sweeps.plan import SweepPlan, SweepRun
from emtoolkit.sweeps.processes import Processes
from emtoolkit.sweeps.sweep_file import Attempt, State, SweepRecord

# What a program says last is not always why it failed: W&B's own words follow an exception.
_OURS = "emtoolkit: "
_AN_ERROR = re.compile(rf"{_OURS}|[\w.]*(Error|Exception|Interrupt|Exit)\b")
_LONGEST_ERROR = 300
_END_OF_LOG = 100_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one combination, and how many checkpoints it has, None where that cannot be told."""

    run: SweepRun
    attempt: Attempt
    checkpoints: int | None


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The outcomes in the order of the sweep; `signal_number` is the signal that ended it early."""

    outcomes: tuple[Outcome, ...]
    signal_number: int | None

    @property
    def all_finished(self) -> bool:
        return all(outcome.attempt.state == "finished" for outcome in self.outcomes)


def run_sweep(
    plan: SweepPlan, *, jobs: int, retry_failed: bool, progress: Callable[[str, int, int], None]
) -> SweepResult:
    """Run what is not finished, `jobs` at a time; failed combinations only with `retry_failed`.

    A SIGINT or SIGTERM is passed on to the runs at work and waited for; what they had not finished runs again at
    the next call.

    Raises:
        UserError: another call is at work on the same sweep, or its record cannot be read or written.
    """
    with _locked(plan.directory):
        remove_temporaries([plan.directory])
        record = SweepRecord(plan.directory)
        runs = [replace(run, before=record.get(run.key) or run.before) for run in plan.runs]
        due = deque(run for run in runs if not run.is_finished and (retry_failed or run.before.state != "failed"))
        with Processes() as processes:
            _work_off(due, processes, record, _shared(plan.environment, jobs), jobs, progress)
            signal_number = processes.signals[0] if processes.signals else None
        outcomes = (Outcome(run, record.get(run.key) or run.before, _count(run.directory)) for run in runs)
        return SweepResult(tuple(outcomes), signal_number)


def _shared(environment: Mapping[str, str], jobs: int) -> Mapping[str, str]:
    """`environment` with the cores divided among the jobs: two programs that both use all are many times slower."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    return {"OMP_NUM_THREADS": str(threads), **environment} if jobs > 1 else environment


def _work_off(
    due: deque[SweepRun],
    processes: Processes,
    record: SweepRecord,
    environment: Mapping[str, str],
    jobs: int,
    progress: Callable[[str, int, int], None],
) -> None:
    total, failed = len(due), 0
    at_work: dict[str, tuple[SweepRun, int]] = {}
    while at_work or (due and not processes.signals):
        while due and len(processes) < jobs and not processes.signals:
            run = due.popleft()
            try:
                at_work[run.key] = (run, _start(run, processes, record, environment))
            except OSError as error:
                failed += 1
                sentence = f"it could not be started ({error.strerror or error}: {error.filename})"
                record.note(run.key, Attempt(run.parameters, "failed", None, sentence))
        progress(
            _status(len(at_work), failed, stopping=bool(processes.signals)), total - len(due) - len(at_work), total
        )
        if not at_work or (ended := processes.next_ended(timeout=1)) is None:
            continue
        key, exit_code = ended
        run, offset = at_work.pop(key)
        attempt = _attempt(run, exit_code, offset, stopped=bool(processes.signals))
        failed += attempt.state == "failed"
        record.note(key, attempt)


def _start(run: SweepRun, processes: Processes, record: SweepRecord, environment: Mapping[str, str]) -> int:
    """Start `run`; where in its log this attempt begins."""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    if str(run.json_file) in run.words:
        write_file(run.json_file, args_json(run.parameters).encode())
    with run.log.open("ab") as log:
        log.write(f"$ {as_typed(run.words)}\n".encode())
        offset = log.tell()
    record.note(run.key, Attempt(run.parameters, "running"))
    processes.start(run.key, with_environment(run.words, environment), environment, run.log)
    return offset


def _attempt(run: SweepRun, exit_code: int, offset: int, *, stopped: bool) -> Attempt:
    state: State = "finished" if exit_code == 0 else "interrupted" if stopped else "failed"
    # What was stopped by a signal of its own has saved its state, too.
    if exit_code in (-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM):
        state = "interrupted"
    error = None if state == "finished" else _last_words(run.log, offset, exit_code)
    return Attempt(run.parameters, state, exit_code, error)


def _last_words(log: Path, offset: int, exit_code: int) -> str:
    """Why a run failed, as far as its log tells: the last line that looks like an error, or else the last line."""
    with log.open("rb") as file:
        file.seek(max(offset, log.stat().st_size - _END_OF_LOG))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip() and not line.startswith("wandb: ")]
    # A progress bar may stand before it on the same line.
    lines = [line[max(0, line.rfind(_OURS)) :] for line in lines]
    errors = [line for line in lines if _AN_ERROR.match(line)]
    last = (errors or lines or [""])[-1].removeprefix(_OURS)[:_LONGEST_ERROR]
    how = f"killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
    return f"{how}: {last}" if last else how


def _status(at_work: int, failed: int, *, stopping: bool) -> str:
    if stopping:
        return f"waiting for {at_work} to save and stop"
    return f"{at_work} running, {failed} failed"


def _count(directory: Path | None) -> int | None:
    if directory is None:
        return None
    try:
        return sum(info.complete for info in list_checkpoints(directory))
    except UserError:
        # Nothing was written there, or something else than checkpoints; the outcome says why.
        return 0


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        lock = lock_directory(directory)
    except InUseError:
        raise ConfigError(
            f"{directory}: another 'emtoolkit sweep' is at work on this file; wait for it, or stop it"
        ) from None
    with lock:
        yield
