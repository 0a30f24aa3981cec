"""Pointers of git-lfs: small text files that stand for large ones until `git lfs pull` has downloaded these."""

from pathlib import Path

_START = b"version https://git-lfs.github.com/spec/"
# In bytes; a pointer has about 130.
_LARGEST = 1024


def pointer_problem(file: Path) -> str | None:
    """A sentence without the path of `file` if it is a pointer, otherwise None.

    Raises:
        OSError: the file cannot be read.
    """
    with file.open("rb") as opened:
        start = opened.read(_LARGEST + 1)
    if not start.startswith(_START) or len(start) > _LARGEST:
        return None
    return f"is a git-lfs pointer of {len(start)} bytes in place of the file; run 'git lfs pull' in {file.parent}"
