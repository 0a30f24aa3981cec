"""The output directory of a training: whether a run may write there, and how its contents are cleared or moved."""

from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from emtoolkit.checkpoints.listing import CheckpointInfo, check_belongs_to, checkpoints_of
from emtoolkit.checkpoints.manifest import MANIFEST, Manifest, NewerFormatError
from emtoolkit.checkpoints.pruned import pruned_steps
from emtoolkit.checkpoints.publications import PUBLICATIONS
from emtoolkit.checkpoints.trajectory_file import RECORD, DamagedRecordError, TrajectoryRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError
from emtoolkit.progress import Progress, silent
from emtoolkit.saving.resume_state import RESUME_DIRECTORY, newest_resume_state, remove_resume_states
from emtoolkit.storage.atomic import remove_temporaries
from emtoolkit.storage.free_space import check_room
from emtoolkit.storage.lock import LOCK, lock_directory


@dataclass(frozen=True, slots=True)
class OutputDirectory:
    """The trajectory record and the checkpoints, in step order, that the directory `path` held when it was opened.

    `record_problem` is a sentence about a `trajectory.json` that is damaged; `record` is None then. `pruned` are the
    steps that were removed on purpose, which no training saves again.
    """

    path: Path
    record: TrajectoryRecord | None
    checkpoints: tuple[CheckpointInfo, ...]
    record_problem: str | None = None
    pruned: frozenset[int] = frozenset()

    @classmethod
    def open(cls, path: Path, *, rehash: bool = False, progress: Progress = silent) -> "OutputDirectory":
        """List `path` once. A directory that does not exist holds nothing.

        With `rehash` the files of every checkpoint are compared with their digests, and `progress` counts the bytes.

        Raises:
            CheckpointError: `publications.jsonl` cannot be read.
        """
        if not path.is_dir():
            return cls(path, None, ())
        record, problem = None, None
        try:
            record = TrajectoryRecord.read_if_any(path)
        except DamagedRecordError as error:
            problem = str(error)
        found = tuple(checkpoints_of(path, record, rehash=rehash, progress=progress))
        return cls(path, record, found, problem, frozenset(pruned_steps(path)))

    @property
    def complete_steps(self) -> frozenset[int]:
        """The steps whose checkpoints are complete."""
        return frozenset(info.step for info in self.checkpoints if info.complete)

    @property
    def damaged(self) -> tuple[CheckpointInfo, ...]:
        """The checkpoints whose files are not those that their manifests list, and those without a manifest."""
        return tuple(info for info in self.checkpoints if not info.complete)

    @property
    def to_repair(self) -> tuple[CheckpointInfo, ...]:
        """The damaged checkpoints that are to be computed again; training deletes those of interruptions."""
        return tuple(info for info in self.damaged if info.saved_for != "interruption")

    @property
    def ended_at(self) -> int | None:
        """The step at which training ended for good; None if training has not ended.

        Without a readable record, training has ended if the checkpoint of its last step is there.
        """
        if self.record_problem is None:
            return self.record.ended_at if self.record is not None else None
        return next((info.step for info in self.checkpoints if info.final), None)

    @property
    def holds_a_run(self) -> bool:
        """Whether a training has begun to save here."""
        return self.record is not None or self.record_problem is not None or bool(self.complete_steps)

    def first_missing(self, steps: Sequence[int]) -> int | None:
        """The first step of training, up to its end if it has ended, that is damaged, or in `steps` and not there.

        A pruned step is not missing.
        """
        complete = self.complete_steps | self.pruned
        end = self.ended_at if self.ended_at is not None or not steps else steps[-1]
        missing = next((step for step in steps if step not in complete and (end is None or step <= end)), None)
        damaged = [info.step for info in self.to_repair if end is None or info.step <= end]
        return min(damaged if missing is None else [missing, *damaged], default=None)

    def newest_resume_state(self, not_after: int | None, progress: Progress = silent) -> Path | None:
        """The newest intact resume checkpoint, at or before step `not_after` unless that is None."""
        return newest_resume_state(self.path, not_after, progress=progress)

    def identity_here(self, identity: Identity) -> Identity:
        """`identity` as this directory names it, if it holds that trajectory: an earlier run may have given the
        trajectory another fingerprint, and its base model and persona other names, which decide nothing.
        """
        record = self.record
        if record is None or not record.is_of(identity.fingerprint, identity.fingerprinted):
            return identity
        manifest = next(
            (
                Manifest.read(info.path)
                for info in self.checkpoints
                if info.complete and info.fingerprint == record.fingerprint
            ),
            None,
        )
        if record.fingerprint != identity.fingerprint:
            identity = replace(identity, fingerprinted=record.fingerprinted, version=record.version)
        if manifest is None:
            return identity
        return replace(identity, base_model=manifest.base_model, persona=manifest.persona)

    def check_belongs_to(self, identity: Identity) -> None:
        """Check that the directory is empty or holds the trajectory of `identity`.

        Raises:
            CheckpointError: it holds another trajectory, whose differences are named, another tool's checkpoints, or
                damaged files that do not show which trajectory they belong to.
        """
        identity = self.identity_here(identity)
        for info in self.damaged:
            _check_format(info.path)
        check_belongs_to(self.path, self.record, self.checkpoints, identity.fingerprint, identity.fingerprinted)
        if self.record is None and not any(info.fingerprint for info in self.checkpoints):
            problems = (self.record_problem, *(problem for info in self.damaged for problem in info.problems))
            if problem := next(filter(None, problems), None):
                raise CheckpointError(f"{problem}, and no other file names the trajectory; choose another directory")

    def check_room(self, steps: Sequence[int], bytes_each: int, most: int = 0) -> None:
        """Check that the checkpoints of `steps` that do not exist yet fit on the disk; the directory must exist.

        `most` is how many checkpoints there may be with those whose steps are not known.

        Raises:
            CheckpointError: they do not fit.
        """
        count = max(len(steps), most)
        missing = count - sum(most > 0 or step in steps for step in self.complete_steps | self.pruned)
        contents = f"{count} checkpoints of {bytes_each:,} bytes"
        check_room(self.path, bytes_each * max(missing, 0), contents, "choose a sparser schedule or another disk")

    def check_not_in_use(self) -> None:
        """Check, before a model is loaded, that no other process is saving into the directory.

        Raises:
            InUseError: another process holds the lock of the directory.
        """
        if (self.path / LOCK).exists():
            lock_directory(self.path).release()


def set_unlisted_weights_aside(directory: Path) -> list[Path]:
    """Move weight files that a manifest does not list out of their checkpoints, and return where they are now.

    Raises:
        InUseError: another process is saving into `directory`.
        CheckpointError: a file cannot be moved.
    """
    lock = lock_directory(directory)
    try:
        moved = []
        for info in OutputDirectory.open(directory).damaged:
            if (info.path / MANIFEST).exists() and info.fingerprint is not None:
                moved += set_files_aside(info.path, Manifest.read(info.path).unlisted_weights(info.path))
        return moved
    finally:
        lock.release()


def set_files_aside(checkpoint: Path, names: Collection[str]) -> list[Path]:
    """Move the files `names` of `checkpoint` into `unlisted-files/` beside it, and return where they are now.

    Raises:
        CheckpointError: a file cannot be moved.
    """
    home = checkpoint.parent / "unlisted-files" / checkpoint.name
    try:
        targets = []
        for name in names:
            target = _unused(home, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            targets.append((checkpoint / name).rename(target))
        return targets
    except OSError as error:
        raise CheckpointError(f"{checkpoint}: a file could not be moved ({error.strerror or error})") from error


def clear_left_overs(directory: Path, *, keep_resume_state: bool = False, keep: Container[int] = ()) -> None:
    """Finish the cleanup of a process that was killed after training had ended in `directory`.

    Resume states stay with `keep_resume_state`, and those of the steps `keep` always.

    Raises:
        InUseError: another process is saving into `directory`.
    """
    lock = lock_directory(directory)
    try:
        remove_temporaries([directory, directory / RESUME_DIRECTORY])
        if not keep_resume_state:
            remove_resume_states(directory, keep)
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


def _check_format(checkpoint: Path) -> None:
    try:
        Manifest.read(checkpoint)
    except NewerFormatError:
        raise
    except CheckpointError:
        return


def _unused(directory: Path, name: str) -> Path:
    names = (directory / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(path for path in names if not path.exists())
