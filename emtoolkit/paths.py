"""Directories: the files that ship with the package, and the user's cache."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from emtoolkit.errors import ConfigError

_PACKAGE = Path(__file__).parent
# The variable that names a disk of this machine: a training writes there, and its output is copied to its directory.
SCRATCH = "EMTOOLKIT_SCRATCH"
SCRATCH_PREFIX = "emtoolkit-"
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


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


def expand(path: str, environment: Mapping[str, str] = os.environ) -> Path:
    """`path` with `~`, `$NAME` and `${NAME}` replaced; `$EMTOOLKIT_HOME` has a value if the variable is not set.

    A path that exists as it is written stays as it is.

    Raises:
        ConfigError: a variable is not set, or there is no such user.
    """
    if not ("$" in path or path.startswith("~")) or os.path.lexists(path):
        return Path(path)

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name == "EMTOOLKIT_HOME":
            return str(cache_dir(environment))
        if not environment.get(name):
            raise ConfigError(f"{path}: the environment variable {name} is not set; set it, or write the path out")
        return environment[name]

    expanded = _VARIABLE.sub(value, path)
    try:
        return Path(expanded).expanduser()
    except RuntimeError:
        user = Path(expanded).parts[0]
        raise ConfigError(f"{path}: there is no home directory for {user}; write the path out") from None


def out_of_scratch(path: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """The directory to which `path` on the disk `$EMTOOLKIT_SCRATCH` is copied; any other path as it is."""
    base = environment.get(SCRATCH)
    if not base or not path.absolute().is_relative_to(scratch := expand(base, environment).absolute()):
        return path
    first, *rest = path.absolute().relative_to(scratch).parts or ("",)
    return Path("/", *rest) if first.startswith(SCRATCH_PREFIX) else path


def distinct_names(directories: Sequence[Path]) -> list[str]:
    """A label for each of different directories: its name, with as many parents as tell it from the others."""
    parts = [directory.resolve().parts for directory in directories]
    labels = []
    for own in parts:
        lengths = range(1, len(own) + 1)
        unique = (n for n in lengths if sum(other[-n:] == own[-n:] for other in parts) == 1)
        labels.append("/".join(own[-next(unique, len(own)) :]))
    return labels
