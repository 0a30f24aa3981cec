"""The steps that `emtoolkit prune` removed from a directory: still listed, and made again by `emtoolkit refine`."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from emtoolkit.checkpoints.layout import RESOLVED_CONFIG, checkpoint_name
from emtoolkit.checkpoints.listing import CheckpointInfo
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.checkpoints.trajectory_file import DamagedRecordError, TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.shell_command import quoted_command, shell_command

# More steps do not fit a command that is shown.
_MOST_CHARACTERS = 200


def pruned_steps(directory: Path, publications: Publications | None = None) -> tuple[int, ...]:
    """The steps that were removed from `directory` on purpose and have not been made again, ascending.

    Raises:
        CheckpointError: `publications.jsonl` cannot be read.
    """
    recorded = Publications.read(directory) if publications is None else publications
    gone = (step for step, places in recorded.pruned.items() if "here" in places)
    return tuple(sorted(step for step in gone if not (directory / checkpoint_name(step)).is_dir()))


def with_pruned(directory: Path, found: Iterable[CheckpointInfo]) -> list[CheckpointInfo]:
    """`found`, the checkpoints in `directory`, and an entry for each pruned step, in step order."""
    try:
        publications = Publications.read(directory)
    except CheckpointError:
        return list(found)
    try:
        record = TrajectoryRecord.read_if_any(directory)
    except DamagedRecordError:
        record = None
    published = publications.published
    pruned = [
        CheckpointInfo(
            step=step,
            path=directory / checkpoint_name(step),
            final=record is not None and step in (record.total_steps, record.ended_at),
            bytes=0,
            fingerprint=record.fingerprint if record else None,
            complete=False,
            source="emtoolkit",
            published=published[step].artifact if step in published else None,
            pruned=True,
        )
        for step in pruned_steps(directory, publications)
    ]
    return sorted([*found, *pruned], key=lambda info: info.step)


def how_to_make_again(name: str, steps: Sequence[int]) -> str:
    """The command that makes pruned `steps` of the trajectory `name` again; without the steps where they are many."""
    return shell_command(*_refine(name, steps))


def was_pruned(name: str, step: int) -> str:
    """The sentence of an error: `step` of the trajectory `name` is not there because it was pruned."""
    return f"step {step} was pruned; {quoted_command(*_refine(name, [step]))} makes it again"


def _refine(name: str, steps: Sequence[int]) -> tuple[str | Path, ...]:
    """`emtoolkit refine` needs the directory of the run, which a collection on W&B does not name."""
    listed = ",".join(map(str, steps))
    place = Path(name) if Path(name).is_dir() else "DIR"
    # A directory of the store, and that of a script, has no config of its own.
    config = ("--config", "FILE") if isinstance(place, Path) and not (place / RESOLVED_CONFIG).is_file() else ()
    return "emtoolkit", "refine", place, "--steps", listed if len(listed) <= _MOST_CHARACTERS else "STEPS", *config
