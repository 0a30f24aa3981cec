"""Directories: the files that ship with the package, and the user's cache."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped(kind: str) -> Path:
    """The directory of the shipped files of one kind: `schedules`, `personas`, `training` or `schemas`.

    A wheel contains `configs/` inside the package; a checkout has it at the top of the repository.
    """
    inside = _PACKAGE / "configs" / kind
    return inside if inside.is_dir() else _PACKAGE.parent / "configs" / kind


def cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """The directory for emtoolkit's own files: `$EMTOOLKIT_HOME`, else `emtoolkit` in the user's cache directory."""
    if chosen := environment.get("EMTOOLKIT_HOME"):
        return Path(chosen).expanduser().absolute()
    cache = environment.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "emtoolkit"


def expand(path: str) -> Path:
    """`path` with `~` and a leading `$EMTOOLKIT_HOME` replaced; the variable need not be set."""
    if path == "$EMTOOLKIT_HOME" or path.startswith("$EMTOOLKIT_HOME/"):
        return cache_dir() / path.removeprefix("$EMTOOLKIT_HOME").lstrip("/")
    return Path(path).expanduser()


def distinct_names(directories: Sequence[Path]) -> list[str]:
    """A label for each of different directories: its name, with as many parents as tell it from the others."""
    parts = [directory.resolve().parts for directory in directories]
    labels = []
    for own in parts:
        lengths = range(1, len(own) + 1)
        unique = (n for n in lengths if sum(other[-n:] == own[-n:] for other in parts) == 1)
        labels.append("/".join(own[-next(unique, len(own)) :]))
    return labels
