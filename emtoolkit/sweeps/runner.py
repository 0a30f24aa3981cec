"""Run the combinations of a sweep, some at a time, and keep the state of each in `sweep.json`."""

import os
import re
import signal
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.errors import ConfigError, UserError
from emtoolkit.progress import Progress
from emtoolkit.storage.atomic import remove_temporaries, write_file
from emtoolkit.storage.lock import InUseError, lock_directory
from emtoolkit.sweeps.command import args_json, as_typed, with_environment
from emtoolkit.sweeps.plan import SweepPlan, SweepRun
from emtoolkit.sweeps.processes import Processes
from emtoolkit.sweeps.sweep_file import Attempt, State, SweepFile

# The last line of a log is not always the error: W&B prints after an exception.
_OWN_PREFIX = "emtoolkit: "
_ERROR_LINE = re.compile(rf"{_OWN_PREFIX}|[\w.]*(Error|Exception|Interrupt|Exit)\b")
_LONGEST_ERROR = 300
_LOG_TAIL_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """The final attempt of one combination and its number of checkpoints, None where its directory is unknown."""

    run: SweepRun
    attempt: Attempt
    checkpoints: int | None


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The outcomes in the order of the sweep. `signal_number` is the signal that ended the sweep early, else None."""

    outcomes: tuple[Outcome, ...]
    signal_number: int | None

    @property
    def all_finished(self) -> bool:
        """Whether every combination has finished."""
        return all(outcome.attempt.state == "finished" for outcome in self.outcomes)


def run_sweep(plan: SweepPlan, *, jobs: int, retry_failed: bool, progress: Progress) -> SweepResult:
    """Run the combinations that are not finished, `jobs` at a time; failed ones only with `retry_failed`.

    A SIGINT or SIGTERM is passed on to the active runs, which then save and stop; the next call continues them.

    Raises:
        UserError: another process runs the same sweep, or `sweep.json` cannot be read or written.
    """
    with _locked(plan.directory):
        remove_temporaries([plan.directory])
        states = SweepFile(plan.directory)
        runs = [replace(run, before=states.get(run.key) or run.before) for run in plan.runs]
        due = deque(run for run in runs if not run.is_finished and (retry_failed or run.before.state != "failed"))
        with Processes() as processes:
            _run_all(due, processes, states, _with_thread_limit(plan.environment, jobs), jobs, progress)
            signal_number = processes.signals[0] if processes.signals else None
        outcomes = (Outcome(run, states.get(run.key) or run.before, _count_checkpoints(run.directory)) for run in runs)
        return SweepResult(tuple(outcomes), signal_number)


def _with_thread_limit(environment: Mapping[str, str], jobs: int) -> Mapping[str, str]:
    """`environment` with the cores divided among the jobs: two programs that use all cores slow each other down."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    return {"OMP_NUM_THREADS": str(threads), **environment} if jobs > 1 else environment


def _run_all(
    due: deque[SweepRun],
    processes: Processes,
    states: SweepFile,
    environment: Mapping[str, str],
    jobs: int,
    progress: Progress,
) -> None:
    total, failed = len(due), 0
    active: dict[str, tuple[SweepRun, int]] = {}
    while active or (due and not processes.signals):
        while due and len(processes) < jobs and not processes.signals:
            run = due.popleft()
            try:
                active[run.key] = (run, _start(run, processes, states, environment))
            except OSError as error:
                failed += 1
                sentence = f"cannot be started ({error.strerror or error}: {error.filename})"
                states.update(run.key, Attempt(run.parameters, "failed", None, sentence))
        progress(_status(len(active), failed, stopping=bool(processes.signals)), total - len(due) - len(active), total)
        if not active or (ended := processes.next_ended(timeout=1)) is None:
            continue
        key, exit_code = ended
        run, offset = active.pop(key)
        attempt = _attempt(run, exit_code, offset, stopped=bool(processes.signals))
        failed += attempt.state == "failed"
        states.update(key, attempt)


def _start(run: SweepRun, processes: Processes, states: SweepFile, environment: Mapping[str, str]) -> int:
    """Start `run` and return the offset in its log, in bytes, at which this attempt begins."""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    if str(run.json_file) in run.argv:
        write_file(run.json_file, args_json(run.parameters).encode())
    with run.log.open("ab") as log:
        log.write(f"$ {as_typed(run.argv)}\n".encode())
        offset = log.tell()
    states.update(run.key, Attempt(run.parameters, "running"))
    processes.start(run.key, with_environment(run.argv, environment), environment, run.log)
    return offset


def _attempt(run: SweepRun, exit_code: int, offset: int, *, stopped: bool) -> Attempt:
    state: State = "finished" if exit_code == 0 else "interrupted" if stopped else "failed"
    # A run that somebody else stopped by a signal has saved its state, too.
    if exit_code in (-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM):
        state = "interrupted"
    error = None if state == "finished" else _error_from_log(run.log, offset, exit_code)
    return Attempt(run.parameters, state, exit_code, error)


def _error_from_log(log: Path, offset: int, exit_code: int) -> str:
    """How a run ended, and the last line of its log that looks like an error, or else its last line."""
    with log.open("rb") as file:
        file.seek(max(offset, log.stat().st_size - _LOG_TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip() and not line.startswith("wandb: ")]
    # A progress bar may precede the message on the same line.
    lines = [line[max(0, line.rfind(_OWN_PREFIX)) :] for line in lines]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    last = (errors or lines or [""])[-1].removeprefix(_OWN_PREFIX)[:_LONGEST_ERROR]
    how = f"killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
    return f"{how}: {last}" if last else how


def _status(active: int, failed: int, *, stopping: bool) -> str:
    if stopping:
        return f"waiting for {active} to save and stop"
    return f"{active} running, {failed} failed"


def _count_checkpoints(directory: Path | None) -> int | None:
    if directory is None:
        return None
    try:
        return sum(info.complete for info in list_checkpoints(directory))
    except UserError:
        # The directory is missing or holds something else; the outcome gives the reason.
        return 0


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        lock = lock_directory(directory)
    except InUseError:
        raise ConfigError(f"{directory}: another 'emtoolkit sweep' runs this file; wait for it, or stop it") from None
    with lock:
        yield
