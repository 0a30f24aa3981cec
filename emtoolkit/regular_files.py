"""Files that people write or download: read whole, unless they are no regular files or far too large."""

import os
import stat
from pathlib import Path

# For `os.open`: fail at a symlink, instead of following it to a file elsewhere.
NO_SYMLINK = getattr(os, "O_NOFOLLOW", 0)

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def read_regular(path: Path, largest: int, *, follow: bool = True) -> bytes:
    """The content of the file at `path`, of at most `largest` bytes; without `follow`, a symlink is refused.

    A pipe or a device is refused before anything is read, because a read could wait or go on for ever.

    Raises:
        OSError: the file cannot be read, is no regular file, or is larger; `str` of the error is a phrase for the user.
    """
    try:
        # Opening a pipe without this flag waits for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | (0 if follow else NO_SYMLINK)
        descriptor = os.open(path, flags)
    except ValueError as error:  # a null byte in the path
        raise OSError(str(error)) from None
    found = os.fstat(descriptor)
    try:
        _check_mode(found.st_mode)
    except OSError:
        os.close(descriptor)
        raise
    with open(descriptor, "rb") as file:
        content = b"" if found.st_size > largest else file.read(largest + 1)
        if found.st_size > largest or len(content) > largest:
            size = max(found.st_size, len(content))
            raise OSError(f"a size of {size:,} bytes; such a file has at most {largest:,}")
        return content


def check_regular(path: Path) -> None:
    """Check that `path` is a file that can be read to its end, before a library opens it.

    Raises:
        OSError: there is no such file, or a directory, a pipe or a device of this name.
    """
    _check_mode(path.stat().st_mode)


def _check_mode(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(f"expected a file, found {_KINDS.get(stat.S_IFMT(mode), 'something else')}")
