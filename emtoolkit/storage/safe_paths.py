"""File names from manifests and from W&B: which of them stay inside the directory they belong to."""

import re
from pathlib import Path, PurePosixPath

# Windows reads backslashes as separators and colons as drives.
_FORBIDDEN = re.compile(r"[\\:\x00-\x1f\x7f]")
# In bytes: what a file system takes as one name, less the ending of a file that is half there; and half of a path.
_LONGEST_PART, _LONGEST = 240, 2048


def why_unsafe(name: str) -> str | None:
    """Why `name` is not a safe name of a file below a directory; None for plain words joined by `/`."""
    if not name:
        return "it is empty"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "it is absolute"
    if _FORBIDDEN.search(name):
        return "it holds a backslash, a colon or a control character"
    if ".." in (parts := name.split("/")):
        return "it leaves the directory"
    if "" in parts or "." in parts:
        return "it is not written in the shortest way"
    lengths = [len(part.encode("utf-8", "surrogatepass")) for part in parts]
    if max(lengths) > _LONGEST_PART or sum(lengths) + len(parts) > _LONGEST:
        return "it is too long"
    return None


def is_plain_below(directory: Path, name: str) -> bool:
    """Whether `name` is safe and no part of it is a symlink in `directory`, which itself may be one."""
    if why_unsafe(name) is not None:
        return False
    # The last parent is `.`, the directory itself.
    relative = PurePosixPath(name)
    return not any((directory / part).is_symlink() for part in (relative, *relative.parents[:-1]))
