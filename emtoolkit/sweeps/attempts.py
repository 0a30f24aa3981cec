"""The state of each combination of a sweep, in a file of its own, so that several processes can share the sweep.

`attempts/KEY.json` holds the latest attempt, and whoever holds the lock of `attempts/KEY.lock` runs the combination.
Earlier versions kept all attempts in one `sweep.json`, which is still read.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from emtoolkit.config.key_values import leaves
from emtoolkit.errors import ConfigError, first_line, shown
from emtoolkit.json_files import object_in, read_json
from emtoolkit.storage.atomic import TEMPORARY, write_file
from emtoolkit.storage.lock import inherited_lock, release_inherited

SWEEP_JSON = "sweep.json"
ATTEMPTS = "attempts"
_SWEEP_FORMAT = 1
_RUN_FORMAT = 3
# Format 2 has neither `step` nor `stalls`.
_READABLE = (2, 3)
# More runs than a sentence can name are counted.
_NAMED = 3

State = Literal["waiting", "running", "finished", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """The latest attempt to run one combination. `running` while nobody holds the lock means that it was killed.

    `inputs` is a digest of what the config named when the attempt began, None where it is not known. `number` counts
    the attempts, from 1 on; 0 is that of an attempt in a `sweep.json`. `step` is the last step that a stopped training
    had reached, None where none is known, and `stalls` how often in a row a time limit stopped it without a new step.
    """

    parameters: Mapping[str, Any]
    state: State = "waiting"
    exit_code: int | None = None
    error: str | None = None
    inputs: str | None = None
    number: int = 0
    step: int | None = None
    stalls: int = 0


class Claim:
    """The right to run one combination, until `release` or until every process that holds `descriptor` has ended.

    The program of the combination inherits the descriptor: after a kill of the sweep nobody runs the combination again
    before its program has ended.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.descriptor = descriptor
        self._path = path

    def update(self, attempt: Attempt) -> None:
        """Replace the attempt; the file is on disk when this returns."""
        content = {"format": _RUN_FORMAT, **asdict(attempt)}
        write_file(self._path, f"{json.dumps(content, indent=1, default=str)}\n".encode())

    def release(self) -> None:
        """Let another process run the combination, also where a program left a process behind."""
        release_inherited(self.descriptor)


class Attempts:
    """The attempts in the directory of a sweep, by the combination's key.

    Combinations that the sweep no longer contains are kept, since it may contain them again later.

    Raises:
        ConfigError: there is a `sweep.json` that no version of emtoolkit wrote.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / ATTEMPTS
        self._earlier = _read_sweep(directory / SWEEP_JSON)

    def get(self, key: str) -> Attempt | None:
        """The latest attempt of the combination `key`, None if it never ran.

        Raises:
            ConfigError: its file cannot be read.
        """
        path = self._directory / f"{key}.json"
        try:
            content = dict(object_in(read_json(path, finite=False)))
            if (version := content.pop("format", None)) not in _READABLE:
                raise ValueError(f"format {shown(version)}, expected {_RUN_FORMAT}")
            return _attempt(content)
        except FileNotFoundError:
            return self._earlier.get(key)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path}: not written by 'emtoolkit sweep' ({error}); delete it to run the combination again"
            ) from error

    def all_keys(self) -> list[str]:
        """The keys of all combinations that ever ran."""
        return sorted({*self._earlier, *(path.stem for path in self._directory.glob("[!.]*.json"))})

    def claim(self, key: str) -> Claim | None:
        """The right to run the combination `key`, None if another process has it.

        Raises:
            ConfigError: the directory is not writable, or its file system has no locks.
        """
        path = self._directory / f"{key}.lock"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            descriptor = inherited_lock(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be locked ({error.strerror or error})") from error
        if descriptor is None:
            return None
        file = self._directory / f"{key}.json"
        for left_over in self._directory.glob(f"{TEMPORARY}{file.name}-*"):
            left_over.unlink(missing_ok=True)
        return Claim(file, descriptor)

    def is_claimed(self, key: str) -> bool:
        """Whether a process, on a machine whose locks this one sees, runs the combination `key`.

        Raises:
            ConfigError: as `claim`.
        """
        if not (self._directory / f"{key}.lock").exists():
            return False
        claim = self.claim(key)
        if claim is not None:
            claim.release()
        return claim is None

    def renew(self, key: str) -> None:
        """Let the combination `key` run again, however its latest attempt ended; one that runs now is left alone.

        Raises:
            ConfigError: as `get` and `claim`.
        """
        claim = self.claim(key)
        if claim is None:
            return
        try:
            if (attempt := self.get(key)) is not None:
                claim.update(Attempt(attempt.parameters, number=attempt.number))
        finally:
            claim.release()


def unfinished_runs(directory: Path) -> str | None:
    """A sentence on the runs of the sweep in `directory` that have not finished; None without such a run.

    Raises:
        ConfigError: the record of a run cannot be read.
    """
    attempts = Attempts(directory)
    known = [attempt for key in attempts.all_keys() if (attempt := attempts.get(key)) is not None]
    open_ones = [each for each in known if each.state != "finished"]
    if not open_ones:
        return None
    named = "; ".join(
        # A combination that is marked as running may have been killed.
        f"{described(each.parameters)}: {'interrupted' if each.state == 'running' else each.state}"
        for each in open_ones[:_NAMED]
    )
    more = f"; and {len(open_ones) - _NAMED} more" if len(open_ones) > _NAMED else ""
    return f"{directory}: {len(open_ones)} of {len(known)} runs of the sweep have not finished ({named}{more})"


def described(parameters: Mapping[str, Any]) -> str:
    """The parameters of a run on one line as a user reads them: `persona=goodness schedule=every:25`."""
    return " ".join(f"{_on_a_line(name)}={_on_a_line(str(value))}" for name, value in flat(parameters).items())


def _on_a_line(text: str) -> str:
    """`text`, or its escaped form where it would end the line or control the terminal."""
    return text if text.isprintable() else repr(text)


def flat(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters by their dotted names, nested ones in a row with the others."""
    return {key: value for name, inner in parameters.items() for key, value in leaves(name, inner)}


def _attempt(fields: Mapping[str, Any]) -> Attempt:
    try:
        found = Attempt(**fields)
    except TypeError as error:
        raise ValueError(first_line(error)) from None
    object_in(found.parameters, "parameters")
    texts = isinstance(found.error, str | None) and isinstance(found.inputs, str | None)
    optional = isinstance(found.exit_code, int | None) and isinstance(found.step, int | None)
    numbers = optional and isinstance(found.number, int) and isinstance(found.stalls, int)
    if found.state not in get_args(State) or not texts or not numbers:
        raise ValueError(f"{shown(dict(fields))} is not an attempt")
    return found


def _read_sweep(path: Path) -> dict[str, Attempt]:
    try:
        content = object_in(read_json(path, finite=False))
        if content.get("format") != _SWEEP_FORMAT:
            raise ValueError(f"format {shown(content.get('format'))}, expected {_SWEEP_FORMAT}")
        runs = object_in(content.get("runs"), "runs")
        return {key: _attempt(object_in(fields, key)) for key, fields in runs.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: not a sweep.json written by 'emtoolkit sweep' ({error}); delete it to run every combination again"
        ) from error
