"""Requests to a training from another process: a file in its output directory, which any machine can write that has it.

The file `save-now` asks the training to save the step it is at and go on, `stop-now` to save the state and stop. The
training removes the file when it takes the request, and records the step in `publications.jsonl` once it is on disk.
Files that are there when a training begins were meant for an earlier one, and are removed without being obeyed.
"""

import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.publications import Publications, add_answer, add_asked
from emtoolkit.checkpoints.trajectory_file import RECORD, TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.regular_files import read_regular
from emtoolkit.storage.atomic import TEMPORARY, write_file
from emtoolkit.storage.lock import is_locked

if TYPE_CHECKING:
    from emtoolkit.saving.session import SavingSession

logger = logging.getLogger(__name__)

Kind = Literal["save", "stop"]
# The values that the processes agree on; two requests at once are the sum.
SAVE, STOP = 1, 2
_KINDS: dict[Kind, int] = {"save": SAVE, "stop": STOP}
# How often a training looks for requests, and a command for the answer, in seconds.
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_POLLS = 0.2
_LONGEST_TOKEN = 100


class NotAnsweredError(CheckpointError):
    """A training did not take a request, or did not answer it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The `step` that a training saved on request, its checkpoint, and whether the training has stopped since."""

    step: int
    path: Path
    stopped: bool


class RequestedSaves:
    """The requests to one training at a time, as its process 0 sees them."""

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._next_look = 0.0
        self._taken: list[str] = []
        # A file that cannot be removed is obeyed once.
        self._stuck: set[str] = set()

    def begin(self, directory: Path | None, now: float) -> None:
        """A training into `directory` begins at the time `now`, in seconds; with None this process never looks."""
        self._directory, self._next_look = directory, now
        self._taken, self._stuck = [], set()

    def look(self, now: float) -> int:
        """Take the requests that are there, at most once a second: the sum of `SAVE` and `STOP`, or 0."""
        if self._directory is None or now < self._next_look:
            return 0
        self._next_look = now + _SECONDS_BETWEEN_LOOKS
        found = [kind for kind in _KINDS if kind not in self._stuck and os.path.lexists(self._directory / _name(kind))]
        for kind in found:
            self._taken.append(self._take(self._directory / _name(kind), kind))
        return sum(_KINDS[kind] for kind in found)

    def _take(self, path: Path, kind: Kind) -> str:
        """The token in the request `path`, which is removed."""
        token = _token_in(path)
        try:
            path.unlink()
        except OSError as error:
            self._stuck.add(kind)
            logger.warning("%s: cannot be removed (%s), and is obeyed only once", path, error.strerror or error)
        return token

    def mark(self, session: "SavingSession", step: int) -> None:
        """Record that the checkpoint of `step`, which is about to be saved, was asked for."""
        logger.info("step %d is saved, as save-now asks", step)
        directory = self._directory
        if directory is not None:
            session.disk.submit(lambda: _noted(lambda: add_asked(directory, step)))

    def answer(self, session: "SavingSession", step: int) -> None:
        """Record, once everything before is on disk, that the requests taken are answered by `step`."""
        directory = self._directory
        taken, self._taken = self._taken, []
        if directory is None or not taken:
            return

        def write() -> None:
            is_saved = any(saved.step == step for saved in session.saved)
            for token in taken:
                add_answer(directory, step, token, saved=is_saved)

        session.disk.submit(lambda: _noted(write))


def forget_requests(directory: Path, *, warn: bool) -> None:
    """Remove the requests in `directory` that no training will take; `warn` says so of each."""
    for kind in _KINDS:
        path = directory / _name(kind)
        if os.path.lexists(path):
            with suppress(OSError):
                path.unlink()
            if warn:
                logger.warning("%s: asked an earlier training, so the file is removed and not obeyed", path)


def request_files() -> list[str]:
    """The names of the files that are requests."""
    return [_name(kind) for kind in _KINDS]


def forward_requests(source: Path, target: Path) -> None:
    """Move the requests in `source` to `target`, where the training looks for them.

    Raises:
        CheckpointError: a request cannot be written there; it stays.
        OSError: a request cannot be removed.
    """
    for kind in _KINDS:
        path = source / _name(kind)
        if os.path.lexists(path) and not os.path.lexists(target / _name(kind)):
            write_file(target / _name(kind), _token_in(path).encode())
            path.unlink()


def ask(directory: Path, kind: Kind, timeout: float, pause: Callable[[float], None] = time.sleep) -> Answer:
    """Ask the training in `directory` to save its step, and wait at most `timeout` seconds for the checkpoint.

    With `kind` "stop" the training stops afterwards, and the call also waits until the training has released the
    directory. `pause` waits for a number of seconds.

    Raises:
        CheckpointError: no training runs in `directory`.
        NotAnsweredError: the training has not taken the request in time, which is withdrawn; it ended or its save
            failed.
    """
    _check_trains(directory, kind)
    path = directory / _name(kind)
    token, is_own = _write_request(path)
    before = len(_answers(directory, token))
    deadline = time.monotonic() + timeout
    try:
        while len(answers := _answers(directory, token)) <= before:
            if not is_locked(directory) and len(_answers(directory, token)) <= before:
                raise NotAnsweredError(_ended_without(directory))
            if time.monotonic() >= deadline:
                raise NotAnsweredError(_not_in_time(path, timeout))
            pause(_SECONDS_BETWEEN_POLLS)
    finally:
        if is_own and _token_in(path) == token:
            with suppress(OSError):
                path.unlink()
    step, is_saved = answers[-1]
    if not is_saved:
        raise NotAnsweredError(f"{directory}: step {step} could not be saved; the training says why")
    while kind == "stop" and is_locked(directory) and time.monotonic() < deadline:
        pause(_SECONDS_BETWEEN_POLLS)
    return Answer(step, directory / checkpoint_name(step), kind == "stop" and not is_locked(directory))


def _check_trains(directory: Path, kind: Kind) -> None:
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: there is no such directory")
    record = TrajectoryRecord.needed(directory)
    if record is None:
        raise CheckpointError(
            f"{directory}: is not the output directory of a run (no {RECORD}); name the directory that holds the "
            "checkpoint-N/"
        )
    if record.ended_at is not None:
        raise CheckpointError(f"{directory}: the training is complete; it ended at step {record.ended_at}")
    if not is_locked(directory):
        raise CheckpointError(
            f"{directory}: no training runs here (no process holds the lock); if one runs on another machine whose "
            f"locks this one does not see, make the file {directory / _name(kind)} yourself"
        )


def _write_request(path: Path) -> tuple[str, bool]:
    """Create the request `path`: its token and True, or the token of an earlier request that waits, and False."""
    token = secrets.token_hex(8)
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{token}")
    try:
        temporary.write_text(token)
        while True:
            try:
                # Unlike a rename, a link replaces nobody's request.
                os.link(temporary, path)
            except FileExistsError:
                earlier = _token_in(path)
                if os.path.lexists(path):
                    return earlier, False
            except OSError:  # a file system without links
                temporary.replace(path)
                return token, True
            else:
                return token, True
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _noted(write: Callable[[], None]) -> None:
    try:
        write()
    except CheckpointError as error:
        # The disk may still have room for the weights, which matter more.
        logger.warning("a request was not recorded: %s", error)


def _token_in(path: Path) -> str:
    """The token in the request `path`; empty where there is none, as in a file made with `touch`."""
    try:
        return read_regular(path, _LONGEST_TOKEN, follow=False).decode(errors="replace").strip()
    except (OSError, ValueError):
        return ""


def _answers(directory: Path, token: str) -> Sequence[tuple[int, bool]]:
    return [(step, saved) for step, request, saved in Publications.read(directory).answers if request == token]


def _ended_without(directory: Path) -> str:
    record = TrajectoryRecord.read_if_any(directory)
    if record is not None and record.ended_at is not None:
        return f"{directory}: the training ended before it took the request; its last step {record.ended_at} is saved"
    return f"{directory}: the training stopped before it answered the request"


def _not_in_time(path: Path, timeout: float) -> str:
    held = "it looks once a second, between two steps, and not while it evaluates"
    if path.exists():
        return (
            f"{path.parent}: the training did not take the request within {timeout:g} s ({held}); the request is "
            "withdrawn; --timeout waits longer"
        )
    return f"{path.parent}: the training took the request, and has not saved the step within {timeout:g} s"


def _name(kind: Kind) -> str:
    return f"{kind}-now"
