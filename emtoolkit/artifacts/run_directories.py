"""The run directories among and below the paths that a command gets."""

from collections.abc import Collection, Sequence
from pathlib import Path

from emtoolkit.checkpoints.trajectory_file import RECORD
from emtoolkit.errors import CheckpointError


def run_directories(roots: Sequence[Path], optional: Collection[Path] = ()) -> list[Path]:
    """Find the run directories among and below `roots`, of which `optional` need not contain any; none that is hidden.

    Raises:
        CheckpointError: a root does not exist or contains no run.
    """
    found: dict[Path, None] = {}
    for root in roots:
        if not root.is_dir():
            raise CheckpointError(f"{root}: there is no such directory")
        inside = ((path, path.parent.relative_to(root).parts) for path in root.rglob(RECORD))
        records = sorted(path for path, names in inside if not any(name.startswith(".") for name in names))
        if not records and root not in optional:
            raise CheckpointError(f"{root}: the directory contains no run of emtoolkit (no {RECORD})")
        found |= dict.fromkeys(record.parent for record in records)
    return list(found)
