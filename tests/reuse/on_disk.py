"""What the directory of a run holds: the bytes of its checkpoints, and their steps."""

import hashlib
from pathlib import Path

from emtoolkit.checkpoints.listing import list_checkpoints


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file of every checkpoint in `directory`."""
    files = sorted(file for file in directory.glob("checkpoint-*/**/*") if file.is_file())
    return {str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def steps(directory: Path) -> list[int]:
    """The steps whose checkpoints in `directory` are complete, byte by byte."""
    return [info.step for info in list_checkpoints(directory, rehash=True) if info.complete]
