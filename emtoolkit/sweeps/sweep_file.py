"""`sweep.json`: what became of each combination of a sweep, so that a second call goes on where the first one ended."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from emtoolkit.errors import ConfigError
from emtoolkit.storage.atomic import write_file

RECORD = "sweep.json"
_FORMAT = 1

State = Literal["waiting", "running", "finished", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """The newest attempt at one combination. `running` without a sweep at work means that it was killed."""

    parameters: Mapping[str, Any]
    state: State = "waiting"
    exit_code: int | None = None
    error: str | None = None


class SweepRecord:
    """The attempts by the key of their combination; every change is on the disk when `note` returns.

    Combinations that the file no longer asks for stay in it: it may ask for them again.

    Raises:
        ConfigError: there is a file of that name that cannot be read as one.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / RECORD
        self._attempts = _read(self._path)

    def get(self, key: str) -> Attempt | None:
        """The attempt at the combination `key`, None if there was none."""
        return self._attempts.get(key)

    def note(self, key: str, attempt: Attempt) -> None:
        """Replace what is known of the combination `key`."""
        self._attempts[key] = attempt
        content = {"format": _FORMAT, "runs": {key: asdict(known) for key, known in self._attempts.items()}}
        write_file(self._path, f"{json.dumps(content, indent=1, default=str)}\n".encode())


def _read(path: Path) -> dict[str, Attempt]:
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {_FORMAT}")
        return {key: Attempt(**fields) for key, fields in content["runs"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: this is not the record of a sweep ({error}); without it every combination runs again"
        ) from error
