"""An analysis that is decided before an evaluation: `analysis.yaml`, its digest, and its record beside the answers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from emtoolkit.errors import ConfigError, DataError, located, nearest, shown
from emtoolkit.evaluation.identity import digest_of
from emtoolkit.evaluation.questions import Question
from emtoolkit.json_files import read_json
from emtoolkit.number_checks import is_number
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.storage.atomic import write_file
from emtoolkit.storage.digests import canonical_json
from emtoolkit.storage.lock import lock_directory
from emtoolkit.yaml_files import parse_yaml, read_text
from emtoolkit.yaml_scalars import boolean_meant, number_meant

RECORDS = "analyses.json"
Inference = Literal["new_questions", "these_questions"]
CurveKind = Literal["rise", "level"]
_LOCK_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class DecidedAnalysis:
    """The event, the inference that decides, the ids of the questions (None: all), and the schedules to compare."""

    metric: str
    threshold: float
    curve: CurveKind = "rise"
    falls: bool = False
    inference: Inference = "new_questions"
    questions: tuple[str, ...] | None = None
    schedules: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the content: comments, the order of the keys and defaults do not change it."""
        return digest_of(asdict(self))


@dataclass(frozen=True, slots=True)
class AnalysisRecord:
    """An analysis as it was recorded; `time` is in UTC, and `steps_before` had been evaluated by then."""

    analysis: DecidedAnalysis
    time: str
    steps_before: tuple[int, ...]


_KEYS = tuple(field.name for field in fields(DecidedAnalysis))
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "metric": (str, "the name of a metric, such as betley"),
    "threshold": ((int, float), "a number, such as 0.10"),
    "curve": (str, "rise or level"),
    "falls": (bool, "true or false"),
    "inference": (str, "new_questions or these_questions"),
    "questions": (list, "a list of the ids of questions"),
    "schedules": (list, "a list of schedules"),
}


def read_analysis(path: Path) -> DecidedAnalysis:
    """The analysis in the YAML file at `path`.

    Raises:
        ConfigError: the file cannot be read, or a key or a value is not valid.
        ScheduleError: a schedule cannot be read.
    """
    return _analysis_of(parse_yaml(read_text(path), str(path)), str(path))


def _analysis_of(content: Any, place: str) -> DecidedAnalysis:
    if not isinstance(content, dict):
        raise ConfigError(f"{place}: expected keys such as metric and threshold, found {shown(content)}")
    meant: dict[str, Callable[[Any], Any]] = {"falls": boolean_meant, "threshold": partial(number_meant, whole=False)}
    content = {key: meant[key](value) if key in meant else value for key, value in content.items()}
    for key in content:
        if key not in _KEYS:
            raise ConfigError(
                f"{place}: unknown key {shown(key)}{nearest(key, _KEYS)}; the keys are {', '.join(_KEYS)}"
            )
    for key in ("metric", "threshold"):
        if key not in content:
            raise ConfigError(f"{place}: the key {key!r} is missing; an analysis decides metric and threshold")
    for key, value in content.items():
        kind, expected = _TYPES[key]
        is_finite = is_number(value) and math.isfinite(value)
        if not isinstance(value, kind) or (key == "threshold" and not is_finite):
            raise ConfigError(f"{place}: {key}: expected {expected}, found {shown(value)}")
    for key, choices in (("curve", get_args(CurveKind)), ("inference", get_args(Inference))):
        if key in content and content[key] not in choices:
            raise ConfigError(f"{place}: {key}: expected {_TYPES[key][1]}, found {shown(content[key])}")
    for key in {"questions", "schedules"} & {*content}:
        if not content[key] or not all(isinstance(each, str) for each in content[key]):
            raise ConfigError(f"{place}: {key}: expected {_TYPES[key][1]}, found {shown(content[key])}")
    schedules = tuple(content.get("schedules", ()))
    with located(f"{place}: schedules"):
        for schedule in schedules:
            Schedule.parse(schedule).check_known()
    questions = tuple(sorted(set(content["questions"]))) if "questions" in content else None
    values = {**content, "threshold": float(content["threshold"]), "questions": questions, "schedules": schedules}
    return DecidedAnalysis(**values)


def record_analysis(
    directory: Path, analysis: DecidedAnalysis, questions: Sequence[Question], evaluated: Sequence[int]
) -> AnalysisRecord:
    """Record `analysis` in `directory`, where the steps `evaluated` have results; an earlier record of it stays.

    Raises:
        DataError: a question of the analysis is not asked, or the records cannot be read.
    """
    asked = [question.id for question in questions]
    for name in analysis.questions or ():
        if name not in asked:
            raise DataError(f"--analysis: the question {name!r} is not asked{nearest(name, asked)}")
    with lock_directory(directory, timeout=_LOCK_SECONDS):
        records = read_records(directory)
        for each in records:
            if each.analysis.digest == analysis.digest:
                return each
        record = AnalysisRecord(analysis, datetime.now(UTC).isoformat(timespec="seconds"), tuple(evaluated))
        _write(directory, (*records, record))
    return record


def keep_records(directory: Path, records: Sequence[AnalysisRecord]) -> None:
    """Write `records` in place of those in `directory`; nothing where they are the same.

    Raises:
        CheckpointError: the file cannot be written.
        DataError: the records that are there cannot be read.
    """
    with lock_directory(directory, timeout=_LOCK_SECONDS):
        if tuple(records) != read_records(directory):
            _write(directory, records)


def merged_records(parts: Sequence[tuple[Sequence[AnalysisRecord], Sequence[int]]]) -> tuple[AnalysisRecord, ...]:
    """The records of several machines as those of one, each part with its records and its evaluated steps.

    An analysis has the time of its earliest record. The steps of a part without a record of it were evaluated before,
    for all that is known.
    """
    every = sorted((record for records, _ in parts for record in records), key=lambda record: record.time)
    first = {record.analysis.digest: record for record in reversed(every)}
    merged = []
    for digest, record in sorted(first.items(), key=lambda item: item[1].time):
        before: set[int] = set()
        for records, steps in parts:
            own = next((each for each in records if each.analysis.digest == digest), None)
            before |= {*steps} if own is None else {*own.steps_before}
        merged.append(replace(record, steps_before=tuple(sorted(before))))
    return tuple(merged)


def _write(directory: Path, records: Sequence[AnalysisRecord]) -> None:
    write_file(directory / RECORDS, canonical_json([_as_json(each) for each in records]))


def read_records(directory: Path) -> tuple[AnalysisRecord, ...]:
    """The analyses that are recorded in the directory of an evaluation, the first one first.

    Raises:
        DataError: the file is damaged, or an analysis was changed after its record.
    """
    path = directory / RECORDS
    if not path.is_file():
        return ()
    try:
        return tuple(_record(each, path) for each in read_json(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not the records of analyses ({error})") from None


def _record(value: Mapping[str, Any], path: Path) -> AnalysisRecord:
    content = {key: each for key, each in value["analysis"].items() if each not in (None, [])}
    analysis = _analysis_of(content, str(path))
    if analysis.digest != value["sha256"]:
        raise DataError(f"{path}: the analysis of {value['time']} was changed after its record; restore the file")
    return AnalysisRecord(analysis, str(value["time"]), tuple(value["steps_before"]))


def _as_json(record: AnalysisRecord) -> dict[str, Any]:
    return {
        "sha256": record.analysis.digest,
        "analysis": asdict(record.analysis),
        "time": record.time,
        "steps_before": list(record.steps_before),
    }
