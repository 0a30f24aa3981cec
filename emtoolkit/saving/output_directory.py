"""The output directory of a training: whether a run may write into it, and how its contents are cleared or moved."""

from itertools import count
from pathlib import Path

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.publications import LEDGER
from emtoolkit.checkpoints.trajectory_file import RECORD, TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.resume_state import RESUME_DIRECTORY, remove_resume_states
from emtoolkit.storage.atomic import remove_temporaries
from emtoolkit.storage.lock import LOCK, lock_directory


def check_not_in_use(directory: Path) -> None:
    """Check, before a model is loaded for it, that no other process is saving into `directory`.

    Raises:
        CheckpointError: another process is.
    """
    if (directory / LOCK).exists():
        lock_directory(directory).release()


def clear_left_overs(directory: Path, *, keep_resume_state: bool = False) -> None:
    """Delete what is left in `directory`, where training ended, by a process that was killed while it cleaned up.

    Raises:
        CheckpointError: another process is saving into it.
    """
    lock = lock_directory(directory)
    try:
        remove_temporaries([directory, directory / RESUME_DIRECTORY])
        if not keep_resume_state:
            remove_resume_states(directory)
    finally:
        lock.release()


def set_aside(directory: Path) -> Path:
    """Move what was saved of a trajectory that was given up into a directory beside it, which is returned.

    Raises:
        CheckpointError: another process is saving into it, or the disk does not take it.
    """
    record = TrajectoryRecord.read_if_any(directory)
    lock = lock_directory(directory)
    name = f"abandoned-{record.fingerprint[:8] if record else 'unknown'}"
    names = (directory / (name if number == 1 else f"{name}-{number}") for number in count(1))
    aside = next(path for path in names if not path.exists())
    try:
        aside.mkdir()
        moved = [info.path for info in list_checkpoints(directory)]
        # The record goes last: a directory without its record must not hold checkpoints.
        for path in (*moved, directory / RESUME_DIRECTORY, directory / LEDGER, directory / RECORD):
            if path.exists():
                path.rename(aside / path.name)
    except OSError as error:
        raise CheckpointError(f"{aside}: it could not be written ({error.strerror or error})") from error
    finally:
        lock.release()
    return aside
