"""The files of one evaluation: the rows of all evaluated steps, and the settings that made them.

Several processes, on one machine or on several that share a disk, may evaluate different steps into one directory: each
adds its steps under the directory's lock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from emtoolkit.checkpoints.metric_values import home_of as home_of
from emtoolkit.errors import CheckpointError, DataError
from emtoolkit.evaluation.measure_rows import MeasureRow, check_one_measure, read_measure_rows, write_measure_rows
from emtoolkit.evaluation.metric_file import write_metrics
from emtoolkit.evaluation.rows import AnswerRow, check_one_origin, read_rows, write_rows
from emtoolkit.json_files import read_json
from emtoolkit.storage.atomic import write_file
from emtoolkit.storage.digests import canonical_json
from emtoolkit.storage.lock import lock_directory

ROWS, MEASURES, SETTINGS, ACTIVATIONS = "answers.parquet", "measures.parquet", "evaluation.json", "activations"
_SESSIONS = "calibration_sessions"
# Another process holds the lock while it reads and writes one file.
_LOCK_SECONDS = 120.0
_Row = TypeVar("_Row", bound=AnswerRow | MeasureRow)


@dataclass(frozen=True, slots=True)
class StoredEvaluation:
    """An evaluation on disk.

    `settings` is the content of `evaluation.json` without the steps and the calibration `sessions`.
    """

    directory: Path
    settings: Mapping[str, Any]
    rows: tuple[AnswerRow, ...]
    measured: tuple[MeasureRow, ...] = ()
    sessions: tuple[Mapping[str, Any], ...] = ()

    @property
    def all_rows(self) -> tuple[AnswerRow | MeasureRow, ...]:
        """The rows of answers and of values."""
        return (*self.rows, *self.measured)

    @property
    def steps(self) -> tuple[int, ...]:
        """The evaluated steps, ascending."""
        return tuple(sorted({row.step for row in self.all_rows}))


def write_missing_metrics(directory: Path) -> None:
    """Write `metrics.json` for the evaluation in `directory`, which an earlier version made.

    Raises:
        CheckpointError: a file cannot be read or written.
    """
    with lock_directory(directory, timeout=_LOCK_SECONDS):
        answers, measured = _rows_in(directory)
        write_metrics(directory, _read_settings(directory), answers, measured)


def read_evaluation(directory: Path) -> StoredEvaluation:
    """The evaluation in `directory`.

    Raises:
        CheckpointError: a file is missing or cannot be read.
        DataError: a file is not what emtoolkit writes.
    """
    settings = _settings_in(directory)
    if settings is None:
        raise CheckpointError(f"{directory}: holds no evaluation (no {SETTINGS}); run 'emtoolkit evaluate' first")
    answers, measured = _rows_in(directory)
    if not answers and not measured:
        raise CheckpointError(f"{directory}: neither {ROWS} nor {MEASURES} is there; run 'emtoolkit evaluate' again")
    sessions = tuple(_read_settings(directory).get(_SESSIONS, ()))
    return StoredEvaluation(directory, settings, tuple(answers), tuple(measured), sessions)


def add_to_evaluation(
    directory: Path,
    settings: Mapping[str, Any],
    rows: Sequence[AnswerRow] = (),
    measured: Sequence[MeasureRow] = (),
    sessions: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write `rows`, `measured` and `settings` into `directory`; rows of other steps that are there stay.

    `sessions`, what the judge said about the calibration set, are appended to the earlier sessions.

    Raises:
        CheckpointError: a file cannot be read or written.
        DataError: the directory holds an evaluation with other settings, or of another training.
    """
    with lock_directory(directory, timeout=_LOCK_SECONDS):
        check_same_settings(directory, settings)
        # Rows without settings are left of a call that ended while it wrote, with settings that nobody knows.
        if _settings_in(directory) is None:
            for name in (ROWS, MEASURES):
                (directory / name).unlink(missing_ok=True)
        answers_before, measured_before = _rows_in(directory)
        answers, values = _with_other_steps(answers_before, rows), _with_other_steps(measured_before, measured)
        check_one_training(str(directory), [*answers, *values])
        if rows:
            check_one_origin(str(directory / ROWS), answers)
        if measured:
            check_one_measure(str(directory / MEASURES), values)
        steps = sorted({row.step for row in answers} | {row.step for row in values})
        together = [*_read_settings(directory).get(_SESSIONS, []), *sessions]
        described = {**settings, "steps": steps} | ({_SESSIONS: together} if together else {})
        try:
            if rows:
                write_rows(directory / ROWS, answers)
            if measured:
                write_measure_rows(directory / MEASURES, values)
            write_file(directory / SETTINGS, canonical_json(described))
            write_metrics(directory, settings, answers, values)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; what was evaluated is kept, and the same command continues") from error


def _rows_in(directory: Path) -> tuple[list[AnswerRow], list[MeasureRow]]:
    answers, measured = directory / ROWS, directory / MEASURES
    return (
        read_rows(answers) if answers.is_file() else [],
        read_measure_rows(measured) if measured.is_file() else [],
    )


def _with_other_steps(before: Sequence[_Row], rows: Sequence[_Row]) -> list[_Row]:
    """`rows`, and those of other steps in `before`, in the order of the steps."""
    done = {row.step for row in rows}
    kept = [row for row in before if row.step not in done]
    return sorted([*kept, *rows], key=lambda row: row.step)


def check_same_settings(directory: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to add rows to an evaluation with other settings.

    Raises:
        DataError: `directory` holds such an evaluation; the message names the first setting that differs.
    """
    there = _settings_in(directory)
    if there is not None and (different := different_settings(there, settings)):
        raise DataError(
            f"{directory}: holds an evaluation with other settings ({', '.join(different)}); choose another "
            "--output-dir"
        )


def check_one_training(where: str, rows: Sequence[AnswerRow | MeasureRow]) -> None:
    """Refuse to make one curve of two trainings.

    Raises:
        DataError: the rows have two fingerprints.
    """
    found = {row.fingerprint: row.trajectory for row in rows}
    if len(found) > 1:
        named = ", ".join(f"{trajectory} ({fingerprint[:8]})" for fingerprint, trajectory in sorted(found.items()))
        raise DataError(f"{where}: answers of {len(found)} trainings ({named}); each needs a directory of its own")


def different_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The names of the settings that differ; `settings`, the digest of all, only where no other differs."""
    names = sorted({*first, *second} - {"settings"})
    different = [name for name in names if canonical_json(first.get(name)) != canonical_json(second.get(name))]
    # A file of an older version has no digest.
    digests = {each["settings"] for each in (first, second) if "settings" in each}
    return different or ["settings"] * (len(digests) > 1)


def _settings_in(directory: Path) -> dict[str, Any] | None:
    settings = _read_settings(directory)
    return {name: value for name, value in settings.items() if name not in ("steps", _SESSIONS)} or None


def _read_settings(directory: Path) -> dict[str, Any]:
    path = directory / SETTINGS
    try:
        settings = read_json(path, finite=False)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise DataError(f"{path}: not the settings of an evaluation ({error})") from None
    if not isinstance(settings, dict) or "judge" not in settings:
        raise DataError(f"{path}: not the settings of an evaluation")
    return settings
