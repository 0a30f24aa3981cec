"""`emtoolkit sync --watch`: publishes the checkpoints of trainings that are still running, from another process.

A training holds the lock of its directory, so a watch takes the lock only after the training has ended, for the last
`sync`. Until then each finished checkpoint whose metrics are recorded is compared with what W&B holds and published: to
the training's own run if that run is offline, because nobody else writes to it, and otherwise to a run of the watch.
The publisher of an online training goes first. Versions that both made at the same time become one.

A training runs while its lock is held. Locks may not be seen from another machine, so whatever the training writes is a
sign of it, too; without an end and without a sign for some time it has stopped.
"""

import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.attached_run import attached_run
from emtoolkit.artifacts.collection import WandbUnavailableError
from emtoolkit.artifacts.names import RUN_NAME
from emtoolkit.artifacts.run_history import find_run
from emtoolkit.artifacts.server import why_not_logged_in
from emtoolkit.artifacts.sync import DirectorySync, Synced, sync
from emtoolkit.checkpoints.listing import CheckpointInfo, damaged_records, list_checkpoints
from emtoolkit.checkpoints.publications import PUBLICATIONS, Publications, WandbRun
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord, withheld
from emtoolkit.errors import CheckpointError, ConfigError
from emtoolkit.progress import silent
from emtoolkit.storage.lock import InUseError, is_locked

# The pauses after failures of W&B, in seconds, the last one again and again.
_PAUSES = (5.0, 15.0, 60.0, 300.0)
# How long a watch leaves a checkpoint of an online run to the training's own publisher.
_SECONDS_FOR_PUBLISHER = 60.0
# How `sync` ends a sentence about a checkpoint that no later attempt can publish.
_DAMAGED = "; the checkpoint is not published"
# How often what is left after the end of a training is tried before it is reported.
_LAST_ATTEMPTS = 3


# Without slots, so that the defaults can be read from the class.
@dataclass(frozen=True)
class WatchOptions:
    """Where to publish, and when.

    `every` is how often a directory is looked at, and `patience` how long a training that has stopped without its end
    is waited for, both in seconds.
    """

    project: str | None = None
    entity: str | None = None
    every: float = 10.0
    patience: float = 600.0

    @classmethod
    def of(
        cls, project: str | None, entity: str | None, *, every: float | None, patience: float | None
    ) -> "WatchOptions":
        """The options of the command line, None for a default.

        Raises:
            ConfigError: a number of seconds is none.
        """
        if every is not None and not 0.1 <= every < math.inf:
            raise ConfigError(f"--every: {every:g} is not a number of seconds, 0.1 or more")
        if patience is not None and not patience >= 0:
            raise ConfigError(f"--patience: {patience:g} is not a number of seconds, 0 or more")
        return cls(
            project, entity, cls.every if every is None else every, cls.patience if patience is None else patience
        )


@dataclass(frozen=True, slots=True)
class WatchTiming:
    """The clock and the pause of a watch, in seconds; tests replace them."""

    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep


def watch_all(
    directories: Callable[[], Sequence[Path]],
    options: WatchOptions,
    say: Callable[[str], None],
    timing: WatchTiming | None = None,
) -> list[Synced]:
    """Publish the checkpoints of `directories()` until every training has ended and everything is published.

    `directories` is called again and again, so that new runs are found. `say` gets a sentence for each checkpoint and
    for each change: W&B does not answer, a training has stopped.

    Raises:
        WandbUnavailableError: nobody is logged in to W&B.
    """
    if why := why_not_logged_in():
        raise WandbUnavailableError(f"W&B: {why}; run 'wandb login' to log in, or set WANDB_BASE_URL")
    timing = timing or WatchTiming()
    watched: dict[Path, _Watched] = {}
    while True:
        with suppress(CheckpointError):  # a directory that has been removed meanwhile
            for directory in directories():
                watched.setdefault(directory, _Watched(directory, options, say, timing.clock()))
        left = [each for each in watched.values() if each.result is None]
        for each in left:
            each.look(timing.clock())
        if all(each.result is not None for each in watched.values()):
            return [each.result for each in watched.values() if each.result is not None]
        timing.pause(options.every)


class _Watched:
    """One directory; `result` is None until its training has ended and everything is published or reported."""

    def __init__(self, directory: Path, options: WatchOptions, say: Callable[[str], None], now: float) -> None:
        self.result: Synced | None = None
        self._directory = directory
        self._options = options
        self._say = say
        self._run_id = f"sync-{secrets.token_hex(4)}"
        self._done: set[int] = set()
        self._published: list[int] = []
        self._damaged: set[str] = set()
        self._first_seen: dict[int, float] = {}
        self._sign: object = None
        self._last_sign = now
        self._is_waiting = False
        self._failures = 0
        self._next_try = now
        self._last_attempts = 0

    def look(self, now: float) -> None:
        """Publish what is new; at the end of the training everything."""
        try:
            if problems := damaged_records(self._directory):
                self._end_with(problems)
                return
            record = TrajectoryRecord.read_if_any(self._directory)
            trains = is_locked(self._directory)
            if record is None:
                self._end_with([f"{self._directory}: the run is gone"])
                return
            is_quiet = self._note_sign(now, trains=trains)
            if record.ended_at is not None and not trains:
                if is_quiet and self._has_left_wandb(now):
                    self._finish(now, None)
            elif now - self._last_sign > self._options.patience:
                self._finish(now, f"the training stopped before its end, and gave no sign for {self._patience}")
            else:
                self._say_whether_it_trains(trains=trains, ended=record.ended_at is not None)
                if not record.may_thin:
                    self._publish_new(now)
        except CheckpointError as error:
            self._end_with([str(error)])
        except OSError as error:
            self._end_with([f"{self._directory}: cannot be read ({error.strerror or error})"])

    @property
    def _patience(self) -> str:
        return f"{self._options.patience:g} s"

    def _note_sign(self, now: float, *, trains: bool) -> bool:
        """Note a sign of the training: its lock, or that it has written; return whether it has not since last time."""
        before, self._sign = self._sign, _written_last(self._directory)
        if trains or self._sign != before:
            self._last_sign = now
        return self._sign == before

    def _has_left_wandb(self, now: float) -> bool:
        """Whether the newest run of a training that has ended has ended on W&B, too, or has had time for that."""
        run = Publications.read(self._directory).newest_run
        if run is None or is_offline_log(run.log) or now - self._last_sign >= _SECONDS_FOR_PUBLISHER:
            return True
        with suppress(Exception):  # then the last `sync` says what W&B answers
            found = find_run(f"{run.entity}/{run.project}/{run.id}")
            return found is None or found.state != "running"
        return True

    def _say_whether_it_trains(self, *, trains: bool, ended: bool) -> None:
        if trains or ended:
            if self._is_waiting:
                self._say(f"{self._directory}: the training goes on")
            self._is_waiting = False
        elif not self._is_waiting:
            self._is_waiting = True
            self._say(
                f"{self._directory}: no process holds the lock, and the training has not ended: it has stopped, or its "
                f"lock cannot be seen from this machine; waiting {self._patience} for a sign of it"
            )

    def _publish_new(self, now: float) -> None:
        steps = self._due_steps(now)
        if not steps or now < self._next_try:
            return
        try:
            synced = _LiveSync(self._directory, self._options, self._run_id, steps).run()
        except CheckpointError as error:
            self._note_failure(str(error), now)
            return
        failed = self._may_succeed(synced.problems)
        if not failed:
            self._note_success()
        self._say_published(synced.published)
        # Without a failure, what W&B lacks now is damaged; the last `sync` looks at it again.
        self._done |= set(synced.on_wandb) if failed else steps
        if failed:
            self._note_failure(failed[0], now)

    def _may_succeed(self, problems: Sequence[str]) -> list[str]:
        """Those of `problems` that another attempt may solve; damaged checkpoints are said once each."""
        damaged = [problem for problem in problems if problem.endswith(_DAMAGED)]
        for problem in damaged:
            if problem not in self._damaged:
                self._damaged.add(problem)
                self._say(problem)
        return [problem for problem in problems if problem not in (*damaged, withheld(self._directory))]

    def _due_steps(self, now: float) -> frozenset[int]:
        """The steps to publish now: complete, with their metrics, and not left to the training's own publisher."""
        publications = Publications.read(self._directory)
        due = set()
        for info in list_checkpoints(self._directory):
            step = info.step
            if step in self._done or not info.complete or step not in publications.settled:
                continue
            seen = self._first_seen.setdefault(step, now)
            if step in publications.published and not (self._options.project or self._options.entity):
                # The training has published it; the last `sync` asks W&B.
                self._done.add(step)
            elif is_offline(publications, step) or now - seen >= _SECONDS_FOR_PUBLISHER:
                due.add(step)
        return frozenset(due)

    def _finish(self, now: float, stopped: str | None) -> None:
        """Send everything that is left, the logs of offline runs too, and end unless something may still succeed."""
        if now < self._next_try:
            return
        try:
            synced = sync(self._directory, project=self._options.project, entity=self._options.entity)
        except InUseError:
            return  # the training has just been resumed
        except CheckpointError as error:
            self._note_failure(str(error), now)
            return
        self._note_success()
        self._say_published(synced.published)
        self._last_attempts += 1
        if (failed := self._may_succeed(synced.problems)) and self._last_attempts < _LAST_ATTEMPTS:
            self._note_failure(failed[0], now)
            return
        for log in synced.logs:
            self._say(f"{self._directory}: the log {log.parent.name} is sent")
        problems = synced.problems
        if stopped is not None:
            advice = "'emtoolkit train … --resume' continues it"
            problems = (*problems, f"{self._directory}: {stopped}; {advice}")
        published = tuple(sorted({*self._published, *synced.published}))
        self.result = replace(synced, published=published, problems=problems)

    def _end_with(self, problems: Sequence[str]) -> None:
        self.result = Synced(self._directory, None, (), tuple(self._published), (), tuple(problems))

    def _say_published(self, steps: Sequence[int]) -> None:
        published = Publications.read(self._directory).published
        for step in steps:
            if step not in self._published:
                self._published.append(step)
                where = published[step].artifact if step in published else "W&B"
                self._say(f"{self._directory}: step {step} is published as {where}")

    def _note_failure(self, problem: str, now: float) -> None:
        pause = _PAUSES[min(self._failures, len(_PAUSES) - 1)]
        self._failures += 1
        self._next_try = now + pause
        if self._failures == 1:
            self._say(f"{problem}; trying again")

    def _note_success(self) -> None:
        if self._failures:
            self._say(f"{self._directory}: W&B answers again")
        self._failures = 0


class _LiveSync(DirectorySync):
    """The synchronization of the finished checkpoints `steps` of a training that may be running, without its logs."""

    def __init__(self, directory: Path, options: WatchOptions, run_id: str, steps: frozenset[int]) -> None:
        self._steps = steps
        self._own_run_id = run_id
        super().__init__(directory, options.project, options.entity, silent, None)

    def _publishable(self) -> list[CheckpointInfo]:
        return [info for info in super()._publishable() if info.step in self._steps]

    def _unsent_logs(self) -> Iterator[WandbRun]:
        return iter(())

    @contextmanager
    def _attached(self, run_id: str | None) -> Iterator[Any]:
        """The offline run `run_id`, which nobody else writes to on W&B, or the run of this watch."""
        name = RUN_NAME.fit(f"sync-{self._directory.resolve().name}")
        known = self._publications.runs.get(run_id or "")
        if known is not None and is_offline_log(known[-1].log):
            state, own = self._state(known[-1]), run_id
            more: dict[str, Any] = {}
        else:
            state, own = None, self._own_run_id
            more = {"name": name, "job_type": "sync", "group": self._destination.collection}
        with attached_run(own, state, failed=False, project=self._project, entity=self._entity, **more) as run:
            yield run


def is_offline(publications: Publications, step: int) -> bool:
    """Whether the run that saved `step` has no publisher that reaches W&B: it is offline, or there is none."""
    known = publications.runs.get(publications.run_of.get(step, ""))
    return known is None or is_offline_log(known[-1].log)


def is_offline_log(log: Path) -> bool:
    """Whether `log` is that of an offline run, by the name of its directory."""
    return log.parent.name.startswith("offline-")


def _written_last(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of what a running training writes: its record, its events and its W&B logs."""
    found = []
    for path in (directory / PUBLICATIONS, *sorted(directory.glob("wandb/*run-*/run-*.wandb"))):
        with suppress(FileNotFoundError):
            state = os.stat(path)
            found.append((str(path), state.st_size, state.st_mtime_ns))
    return tuple(found)
