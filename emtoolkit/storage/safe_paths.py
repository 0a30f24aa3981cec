"""Names of files that others wrote down: which of them stay inside the directory that they are said to be in."""

import re
from pathlib import Path, PurePosixPath

# Backslashes and colons are separators and drives where Windows reads them.
_NEVER = re.compile(r"[\\:\x00-\x1f\x7f]")


def why_unsafe(name: str) -> str | None:
    """Why `name` may not be that of a file below a directory; None for plain words joined by `/`."""
    if not name:
        return "it is empty"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "it is absolute"
    if _NEVER.search(name):
        return "it holds a backslash, a colon or a control character"
    if ".." in (parts := name.split("/")):
        return "it leaves the directory"
    if "" in parts or "." in parts:
        return "it is not written in the shortest way"
    return None


def is_plain_below(directory: Path, name: str) -> bool:
    """Whether `name` stays inside `directory` there, too: it is safe, and no part of it is a symlink."""
    if why_unsafe(name) is not None:
        return False
    # The last of the parents is `.`, the directory itself, which its owner may have put behind a link.
    relative = PurePosixPath(name)
    return not any((directory / part).is_symlink() for part in (relative, *relative.parents[:-1]))
