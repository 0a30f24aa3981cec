"""The output directory of a training: whether a run may write there, and how its contents are cleared or moved."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from emtoolkit.checkpoints.listing import CheckpointInfo, check_belongs_to, list_checkpoints
from emtoolkit.checkpoints.publications import PUBLICATIONS
from emtoolkit.checkpoints.trajectory_file import RECORD, TrajectoryRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.resume_state import RESUME_DIRECTORY, newest_resume_state, remove_resume_states
from emtoolkit.storage.atomic import remove_temporaries
from emtoolkit.storage.free_space import check_room
from emtoolkit.storage.lock import LOCK, lock_directory


@dataclass(frozen=True, slots=True)
class OutputDirectory:
    """What the directory `path` held when it was opened: its trajectory record and its checkpoints, in step order."""

    path: Path
    record: TrajectoryRecord | None
    checkpoints: tuple[CheckpointInfo, ...]

    @classmethod
    def open(cls, path: Path) -> "OutputDirectory":
        """List `path` once. A directory that does not exist holds nothing.

        Raises:
            CheckpointError: `trajectory.json` or `publications.jsonl` cannot be read.
        """
        if not path.is_dir():
            return cls(path, None, ())
        return cls(path, TrajectoryRecord.read_if_any(path), tuple(list_checkpoints(path)))

    @property
    def complete_steps(self) -> frozenset[int]:
        """The steps whose checkpoints are complete."""
        return frozenset(info.step for info in self.checkpoints if info.complete)

    @property
    def ended_at(self) -> int | None:
        """The step at which training ended for good; None if training has not ended."""
        return self.record.ended_at if self.record is not None else None

    @property
    def holds_a_run(self) -> bool:
        """Whether a training has begun to save here."""
        return self.record is not None or bool(self.complete_steps)

    def first_missing(self, steps: Sequence[int]) -> int | None:
        """The first of the scheduled `steps`, up to the end of training if training has ended, without a checkpoint."""
        ended_at, complete = self.ended_at, self.complete_steps
        return next((s for s in steps if s not in complete and (ended_at is None or s <= ended_at)), None)

    def newest_resume_state(self, not_after: int | None) -> Path | None:
        """The newest complete resume checkpoint, at or before step `not_after` unless that is None."""
        return newest_resume_state(self.path, not_after)

    def check_belongs_to(self, identity: Identity) -> None:
        """Check that the directory is empty or holds the trajectory of `identity`.

        Raises:
            CheckpointError: it holds another trajectory, whose differences are named, or another tool's checkpoints.
        """
        check_belongs_to(self.path, self.record, self.checkpoints, identity.fingerprint, identity.fingerprinted)

    def check_room(self, steps: Sequence[int], bytes_each: int) -> None:
        """Check that the checkpoints of `steps` that do not exist yet fit on the disk; the directory must exist.

        Raises:
            CheckpointError: they do not fit.
        """
        missing = len(steps) - sum(step in steps for step in self.complete_steps)
        contents = f"{len(steps)} checkpoints of {bytes_each:,} bytes"
        check_room(self.path, bytes_each * missing, contents, "choose a sparser schedule or another disk")

    def check_not_in_use(self) -> None:
        """Check, before a model is loaded, that no other process is saving into the directory.

        Raises:
            InUseError: another process holds the lock of the directory.
        """
        if (self.path / LOCK).exists():
            lock_directory(self.path).release()


def clear_left_overs(directory: Path, *, keep_resume_state: bool = False) -> None:
    """Finish the cleanup of a process that was killed after training had ended in `directory`.

    Raises:
        InUseError: another process is saving into `directory`.
    """
    lock = lock_directory(directory)
    try:
        remove_temporaries([directory, directory / RESUME_DIRECTORY])
        if not keep_resume_state:
            remove_resume_states(directory)
    finally:
        lock.release()


def set_aside(directory: Path) -> Path:
    """Move the checkpoints of an abandoned trajectory into a subdirectory of `directory`, which is returned.

    Raises:
        InUseError: another process is saving into `directory`.
        CheckpointError: the subdirectory cannot be written.
    """
    lock = lock_directory(directory)
    try:
        contents = OutputDirectory.open(directory)
        aside = _unused(directory, f"abandoned-{contents.record.fingerprint[:8] if contents.record else 'unknown'}")
        aside.mkdir()
        moved = [info.path for info in contents.checkpoints]
        # The record is moved last: a directory without its record must not hold checkpoints.
        for path in (*moved, directory / RESUME_DIRECTORY, directory / PUBLICATIONS, directory / RECORD):
            if path.exists():
                path.rename(aside / path.name)
    except OSError as error:
        raise CheckpointError(f"{directory}: its contents could not be moved ({error.strerror or error})") from error
    finally:
        lock.release()
    return aside


def _unused(directory: Path, name: str) -> Path:
    names = (directory / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(path for path in names if not path.exists())
