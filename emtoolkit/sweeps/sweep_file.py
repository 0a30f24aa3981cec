"""`sweep.json`: the state of each combination of a sweep, so that a second call continues where the first ended."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from emtoolkit.errors import ConfigError
from emtoolkit.storage.atomic import write_file

SWEEP_JSON = "sweep.json"
_FORMAT = 1
# More runs than a sentence can name are counted.
_NAMED = 3

State = Literal["waiting", "running", "finished", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """The latest attempt to run one combination. `running` while no sweep is running means that it was killed."""

    parameters: Mapping[str, Any]
    state: State = "waiting"
    exit_code: int | None = None
    error: str | None = None


class SweepFile:
    """The `sweep.json` in `directory`: the latest attempt of each combination, by the combination's key.

    Combinations that the sweep no longer contains are kept, since it may contain them again later.

    Raises:
        ConfigError: the file exists and is not a `sweep.json` of this format.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / SWEEP_JSON
        self._attempts = _read(self._path)

    def get(self, key: str) -> Attempt | None:
        """The latest attempt of the combination `key`, None if it never ran."""
        return self._attempts.get(key)

    def update(self, key: str, attempt: Attempt) -> None:
        """Replace the attempt of the combination `key`; the file is on disk when this returns."""
        self._attempts[key] = attempt
        content = {"format": _FORMAT, "runs": {key: asdict(known) for key, known in self._attempts.items()}}
        write_file(self._path, f"{json.dumps(content, indent=1, default=str)}\n".encode())


def described(parameters: Mapping[str, Any]) -> str:
    """The parameters of a run as a user reads them: `persona=goodness schedule=every:25`."""
    return " ".join(f"{name}={value}" for name, value in parameters.items())


def unfinished_runs(directory: Path) -> str | None:
    """A sentence on the runs that the `sweep.json` in `directory` does not call finished; None without such a run.

    Raises:
        ConfigError: the file is not a `sweep.json` of this format.
    """
    attempts = _read(directory / SWEEP_JSON)
    open_ones = [each for each in attempts.values() if each.state != "finished"]
    if not open_ones:
        return None
    named = "; ".join(
        # A combination that is marked as running may have been killed.
        f"{described(each.parameters)}: {'interrupted' if each.state == 'running' else each.state}"
        for each in open_ones[:_NAMED]
    )
    more = f"; and {len(open_ones) - _NAMED} more" if len(open_ones) > _NAMED else ""
    return f"{directory}: {len(open_ones)} of {len(attempts)} runs of the sweep have not finished ({named}{more})"


def _read(path: Path) -> dict[str, Attempt]:
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {_FORMAT}")
        return {key: Attempt(**fields) for key, fields in content["runs"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: not a sweep.json written by 'emtoolkit sweep' ({error}); delete it to run every combination again"
        ) from error
