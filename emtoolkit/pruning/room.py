"""How much room the deletion of directories gives: a file with further hard links elsewhere frees nothing."""

import os
from collections.abc import Iterable
from pathlib import Path


def freed_bytes(directories: Iterable[Path]) -> int:
    """The bytes of the files whose every link is in `directories`, each file counted once."""
    links: dict[tuple[int, int], int] = {}
    known: dict[tuple[int, int], os.stat_result] = {}
    for directory in directories:
        # The target of a symlink is not deleted.
        for path in () if directory.is_symlink() else directory.rglob("*"):
            found = path.lstat()
            if path.is_symlink() or path.is_dir():
                continue
            key = (found.st_dev, found.st_ino)
            links[key] = links.get(key, 0) + 1
            known[key] = found
    return sum(found.st_size for key, found in known.items() if links[key] >= found.st_nlink)
