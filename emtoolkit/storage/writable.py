"""Whether a run can write into a directory that may not exist yet; the check leaves no trace."""

import os
import tempfile
from pathlib import Path

from emtoolkit.errors import ConfigError


def check_can_write(directory: Path, key: str) -> None:
    """Check that `directory`, which the config's `key` names, can be made and written to.

    Raises:
        ConfigError: a file is in the way, or the system refuses; the text names the place.
    """
    place = directory
    try:
        while not _exists(place):
            place = place.parent
        if not place.is_dir():
            kind = "a link to a place that does not exist" if place.is_symlink() else "a file"
            what = f"is {kind}" if place == directory else f"cannot be made, because {place} is {kind}"
            raise ConfigError(f"{key}: {directory}: {what}; choose another directory")
        # Some systems give a file a name for a moment.
        with tempfile.TemporaryFile(dir=place, prefix=".tmp-"):
            pass
        if not os.access(place, os.X_OK):
            raise PermissionError("Permission denied")
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or error
        what = "cannot be written to" if place == directory else f"cannot be made in {place}"
        raise ConfigError(f"{key}: {directory}: {what} ({reason}); choose another directory") from None


def _exists(place: Path) -> bool:
    """Whether something has the name `place`, a broken link included.

    Raises:
        OSError: the name is too long, or cannot be looked up.
    """
    try:
        os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
