"""Where files live: what ships with the package, and the user's own cache directory."""

import os
from collections.abc import Mapping
from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped(kind: str) -> Path:
    """The directory of shipped files of one kind: `schedules`, `personas` or `training`.

    A wheel carries `configs/` inside the package; in a checkout it is at the top of the repository.
    """
    inside = _PACKAGE / "configs" / kind
    return inside if inside.is_dir() else _PACKAGE.parent / "configs" / kind


def cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Where emtoolkit keeps what it makes for the user: `$EMTOOLKIT_HOME`, else the user's cache directory.

    `$XDG_CACHE_HOME` is honoured as the XDG base directory specification has it.
    """
    if chosen := environment.get("EMTOOLKIT_HOME"):
        return Path(chosen).expanduser().absolute()
    cache = environment.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "emtoolkit"


def expand(path: str) -> Path:
    """`path` with `~` and a leading `$EMTOOLKIT_HOME` replaced; the latter works whether or not it is set."""
    if path == "$EMTOOLKIT_HOME" or path.startswith("$EMTOOLKIT_HOME/"):
        return cache_dir() / path.removeprefix("$EMTOOLKIT_HOME").lstrip("/")
    return Path(path).expanduser()
