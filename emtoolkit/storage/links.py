"""A second name for the bytes of a file: a clone where the file system has clones, else a hard link, else a copy."""

import errno
import os
import shutil
from pathlib import Path

# From <linux/fs.h>: share the blocks of another file until one of the two is written.
_FICLONE = 0x40049409
_NO_CLONES = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES)
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES)


def link_file(source: Path, target: Path) -> None:
    """Make `target`, which must not exist, a file with the content of the plain file `source`.

    A hard link is one file under two names, so it is made read-only: a write through one name would change the other.

    Raises:
        OSError: neither a clone, nor a link, nor a copy can be made.
    """
    if _clone(source, target):
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)
    else:
        _make_read_only(target)


def _clone(source: Path, target: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return False
    try:
        with source.open("rb") as original, target.open("xb") as clone:
            fcntl.ioctl(clone.fileno(), _FICLONE, original.fileno())
    except FileExistsError:
        raise
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno not in _NO_CLONES:
            raise
        return False
    return True


def _make_read_only(file: Path) -> None:
    try:
        file.chmod(file.stat().st_mode & ~0o222)
    except PermissionError:
        # The file belongs to somebody else, who alone may change its mode.
        return
