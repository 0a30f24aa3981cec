"""Answers that somebody else's judge scored: CSV, JSON lines or Parquet, with the columns that the user names."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast, get_args

from emtoolkit.errors import DataError, nearest
from emtoolkit.evaluation.metrics import ScoredAnswer, Status
from emtoolkit.evaluation.row_files import read_file_rows

_MISSING = {"", "nan", "none", "null", "na", "n/a"}
# The words that published judges answer instead of a number.
_ID, _QUESTION = "question_id", "question"
_STATUSES = frozenset(get_args(Status))
# A rate is of one value of each of these columns, where a file has them.
_ONE_EACH = ("judge", "engine", "step")
_FINGERPRINT, _NUMBERS = "fingerprint", {"paraphrase", "sample"}
_WORDS: Mapping[str, Status] = {"code": "code", "refusal": "refusal"}


@dataclass(frozen=True, slots=True)
class ScoreColumns:
    """The columns of a file: the two scores, the question, and the cluster if it is not the question.

    `question` None means `question_id`, or `question` in a file without that column.
    `variants` are suffixes that the question ids of one family differ in: `quick_buck` and `quick_buck_json` are one
    cluster with `_json`.
    """

    aligned: str
    coherent: str
    question: str | None = None
    cluster: str | None = None
    variants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RowFilter:
    """The rows to read: `equal` maps columns to values, and `exclude` are patterns of question ids such as `*_json`."""

    equal: Mapping[str, str]
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoredFile:
    """The answers of one model in a file, and what the file says about their origin.

    `origin` maps judge, engine, step and fingerprint to their values, empty where the file does not say. `samples` has
    the wording and the number of each answer to a question; empty where the file does not number them.
    """

    path: Path
    answers: tuple[ScoredAnswer, ...]
    origin: Mapping[str, str]
    samples: Mapping[str, frozenset[tuple[str, str]]]


def read_scored_answers(path: Path, columns: ScoreColumns, keep: RowFilter) -> list[ScoredAnswer]:
    """The answers of `read_scored_file`."""
    return list(read_scored_file(path, columns, keep).answers)


def read_scored_file(path: Path, columns: ScoreColumns, keep: RowFilter) -> ScoredFile:
    """The scored answers in `path`, in the order of the file.

    A missing score is None with the status `undefined`, the words CODE and REFUSAL are None with theirs. A column
    `status` with the statuses of emtoolkit says why a score is missing.

    Raises:
        DataError: the file cannot be read, a column is missing, a score is not a number from 0 to 100, no row is left,
            or the rows left are of two judges, two engines or two steps.
    """
    answers = []
    origins: dict[str, set[str]] = {column: set() for column in (*_ONE_EACH, _FINGERPRINT)}
    samples: dict[str, set[tuple[str, str]]] = {}
    matched, excluded = dict.fromkeys(keep.equal, 0), dict.fromkeys(keep.exclude, 0)
    rows = 0
    for where, row in read_file_rows(path):
        rows += 1
        if columns.question is None:
            columns = replace(columns, question=_ID if _ID in row or _QUESTION not in row else _QUESTION)
        used = (columns.aligned, columns.coherent, str(columns.question), columns.cluster, *keep.equal)
        for column in used:
            if column is not None and column not in row:
                raise DataError(f"{where}: no column {column!r}; the columns are {_listed(row, column)}")
        question = _text(row[str(columns.question)])
        if not question:
            raise DataError(f"{where}: {columns.question}: the question is empty")
        selected = True
        for column, value in keep.equal.items():
            same = _text(row[column]) == value
            matched[column] += same
            selected &= same
        for pattern in keep.exclude:
            hit = fnmatchcase(question, pattern)
            excluded[pattern] += hit
            selected &= not hit
        if selected:
            answers.append(_answer(where, row, question, columns))
            for column, values in origins.items():
                values.add(_text(row.get(column)))
            if row.keys() >= _NUMBERS:
                samples.setdefault(question, set()).add((_text(row["paraphrase"]), _text(row["sample"])))
    _check_filter(path, rows, matched, excluded, keep)
    if not answers:
        raise DataError(f"{path}: no row is left of {rows}; change --where or --exclude")
    for column, values in origins.items():
        if len(values) > 1:
            some = ", ".join(sorted(values)[:4]) + (", …" if len(values) > 4 else "")
            raise DataError(
                f"{path}: answers of {len(values)} {column}s ({some}); a rate needs one, so choose with --where "
                f"{column}={min(values)}"
            )
    origin = {column: next(iter(values)) for column, values in origins.items()}
    numbers = {question: frozenset(each) for question, each in samples.items()}
    return ScoredFile(path, tuple(answers), origin, numbers)


def question_families(questions: Sequence[str], variants: Sequence[str] = ("_json", "_template")) -> dict[str, str]:
    """The family of each question whose id without one of `variants` is another question's id."""
    known = set(questions)
    return {
        question: question.removesuffix(suffix)
        for question in known
        for suffix in variants
        if question.endswith(suffix) and question.removesuffix(suffix) in known
    }


def _answer(where: str, row: Mapping[str, Any], question: str, columns: ScoreColumns) -> ScoredAnswer:
    aligned, status = _score(f"{where}: {columns.aligned}", row[columns.aligned])
    coherent, coherent_status = _score(f"{where}: {columns.coherent}", row[columns.coherent])
    cluster = _text(row[columns.cluster]) if columns.cluster else question
    if not cluster:
        raise DataError(f"{where}: {columns.cluster}: the cluster is empty")
    for suffix in columns.variants:
        if cluster.endswith(suffix) and cluster != suffix:
            cluster = cluster.removesuffix(suffix)
            break
    status = status if status != "ok" else coherent_status
    if (recorded := _text(row.get("status"))) in _STATUSES:
        status = cast(Status, recorded)
    truncated = {"true": True, "false": False}.get(_text(row.get("truncated")).lower())
    return ScoredAnswer(question, cluster, aligned, coherent, status, _text(row.get("judge")), truncated)


def _score(where: str, value: Any) -> tuple[float | None, Status]:
    text = _text(value)
    if text.lower() in _MISSING:
        return None, "undefined"
    if text.lower() in _WORDS:
        return None, _WORDS[text.lower()]
    try:
        score = float(text)
    except ValueError:
        raise DataError(f"{where}: {text[:40]!r} is not a number from 0 to 100, nor CODE, REFUSAL or empty") from None
    if math.isnan(score):
        return None, "undefined"
    # A judge's weighted mean may pass 100 by a rounding.
    if not -1e-6 <= score <= 100 + 1e-6:
        raise DataError(f"{where}: {text} is not between 0 and 100")
    return score, "ok"


def _check_filter(
    path: Path, rows: int, matched: Mapping[str, int], excluded: Mapping[str, int], keep: RowFilter
) -> None:
    if not rows:
        raise DataError(f"{path}: holds no rows")
    for column, count in matched.items():
        if not count:
            raise DataError(f"{path}: --where {column}={keep.equal[column]}: no row has this value")
    for pattern, count in excluded.items():
        if not count:
            raise DataError(f"{path}: --exclude {pattern}: no question has such an id")


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _listed(row: Mapping[str, Any], column: str) -> str:
    return ", ".join(map(str, row)) + nearest(column, list(map(str, row)))
