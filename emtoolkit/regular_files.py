"""Files that people write or download: read whole, unless they are no regular files or far too large."""

import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def read_regular(path: Path, largest: int) -> bytes:
    """The content of the file at `path`, of at most `largest` bytes.

    A pipe or a device is refused before anything is read, because a read could wait or go on for ever.

    Raises:
        OSError: the file cannot be read, is no regular file, or is larger; `str` of the error is a phrase for the user.
    """
    try:
        # Opening a pipe without this flag waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:  # a null byte in the path
        raise OSError(str(error)) from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise OSError(f"expected a file, found {_KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}")
    with open(descriptor, "rb") as file:
        content = b"" if found.st_size > largest else file.read(largest + 1)
        if found.st_size > largest or len(content) > largest:
            size = max(found.st_size, len(content))
            raise OSError(f"a size of {size:,} bytes; such a file has at most {largest:,}")
        return content
