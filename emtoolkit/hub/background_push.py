"""Pushing while a training runs: a thread looks for finished checkpoints and sends them.

The training never waits for the hub, and no failure ends it. The thread looks at the directory instead of being told,
so that a checkpoint which training saved, another run lent or an earlier run left behind is sent alike.
"""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emtoolkit.checkpoints.layout import step_of
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.manifest import MANIFEST
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.errors import UserError, first_line
from emtoolkit.hub.push import push
from emtoolkit.schedules.steps import elided
from emtoolkit.shell_command import quoted_command
from emtoolkit.storage.thread_priority import NETWORK, give_way

logger = logging.getLogger(__name__)

# How often the directory is looked at, and the pauses after failures, in seconds.
_EVERY = 2.0
_PAUSES = (5.0, 15.0, 60.0, 300.0)


@dataclass(frozen=True, slots=True)
class PushedTrajectory:
    """Where a training saves, the trajectory that it saves there, and the repository that gets its checkpoints."""

    directory: Path
    fingerprint: str
    fingerprinted: Mapping[str, Any]
    repository: str
    private: bool


class BackgroundPush:
    """Sends the finished checkpoints of a training from a thread of its own, until `close`."""

    def __init__(self, trajectory: PushedTrajectory) -> None:
        self._trajectory = trajectory
        self._ending = threading.Event()
        self._there: set[int] = set()
        self._seen: frozenset[str] = frozenset()
        self._problem: str | None = None
        # A daemon, so that a stalled connection does not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="emtoolkit-push", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Send what is left, wait at most `timeout` seconds for that, and warn about what the hub lacks then.

        Raises:
            KeyboardInterrupt: a signal ended the wait.
        """
        self._ending.set()
        late = f"the hub had not taken them {timeout:g} s after the end of training"
        try:
            self._thread.join(timeout)
        except KeyboardInterrupt:
            late = "a signal ended the wait for the hub"
            raise
        finally:
            if self._thread.is_alive():
                self._problem = self._problem or late
            self._report()

    def _work(self) -> None:
        give_way(NETWORK)
        failures = 0
        while not self._ending.wait(_PAUSES[min(failures, len(_PAUSES)) - 1] if failures else _EVERY):
            if not self._looks_new():
                continue
            try:
                self._push(sorted(self._finished() - self._there), to_main=False)
            except Exception as error:  # noqa: BLE001 - a failure of any kind ends no training, and is reported
                self._note(error)
                failures += 1
            else:
                failures = 0
        self._push_the_rest()

    def _push_the_rest(self) -> None:
        try:
            finished = self._finished()
            # The last step brings `main` up to date.
            self._push(sorted(finished - self._there) or sorted(finished)[-1:], to_main=True)
        except Exception as error:  # noqa: BLE001 - as above
            self._note(error)

    def _push(self, steps: list[int], *, to_main: bool) -> None:
        if not steps:
            return
        there = self._trajectory
        done = push(
            there.directory,
            there.repository,
            ",".join(map(str, steps)),
            private=there.private,
            to_main=to_main,
            on_sent=self._there.add,
        )
        self._there |= {*done.sent, *done.present}
        self._problem = None

    def _looks_new(self) -> bool:
        """Whether other checkpoints are in the directory than at the last look, or the last push failed."""
        try:
            names = frozenset(
                path.name
                for path in self._trajectory.directory.iterdir()
                if step_of(path.name) is not None and (path / MANIFEST).exists()
            )
        except OSError:
            return False
        before, self._seen = self._seen, names
        return names != before or self._problem is not None

    def _finished(self) -> set[int]:
        """The steps that are on disk and stay there."""
        directory = self._trajectory.directory
        record = TrajectoryRecord.read_if_any(directory) if directory.is_dir() else None
        if record is None or record.may_thin:
            return set()
        if not record.is_of(self._trajectory.fingerprint, self._trajectory.fingerprinted):
            return set()  # the run has not begun, and is refused because of that
        return {info.step for info in list_checkpoints(directory) if info.complete and info.is_of_trajectory}

    def _note(self, error: Exception) -> None:
        text = str(error) if isinstance(error, UserError) else first_line(error)
        if self._problem is None:
            logger.info("%s; training goes on", text)
        self._problem = text

    def _report(self) -> None:
        if self._problem is None:
            return
        directory, repository = self._trajectory.directory, self._trajectory.repository
        try:
            missing = sorted(self._finished() - self._there)
        except UserError:
            missing = []
        command = quoted_command("emtoolkit", "push", directory, repository)
        if missing:
            logger.warning(
                "%d checkpoints are not on the hub (steps %s; %s); they are complete in %s, and %s sends them",
                len(missing),
                elided(missing, 100),
                self._problem,
                directory,
                command,
            )
        else:
            logger.warning("the push to %s did not end (%s); %s ends it", repository, self._problem, command)
