"""The check that a disk has room for the files that will be written."""

import shutil
from pathlib import Path

from emtoolkit.errors import CheckpointError


def check_room(directory: Path, needed: int, contents: str, advice: str) -> None:
    """Check that `needed` bytes fit on the disk of `directory`; `contents` and `advice` complete the message.

    Raises:
        CheckpointError: fewer than `needed` bytes are free.
    """
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise CheckpointError(f"{directory}: {contents} need {needed:,} bytes and {free:,} are free; {advice}")
