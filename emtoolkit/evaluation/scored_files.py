"""Answers that somebody else's judge scored: CSV, JSON lines or Parquet, with the columns that the user names."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from emtoolkit.errors import DataError, nearest
from emtoolkit.evaluation.metrics import ScoredAnswer, Status

_MISSING = {"", "nan", "none", "null", "na", "n/a"}
# The words that published judges answer instead of a number.
_WORDS: Mapping[str, Status] = {"code": "code", "refusal": "refusal"}


@dataclass(frozen=True, slots=True)
class ScoreColumns:
    """The columns of a file: the two scores, the question, and the cluster if it is not the question.

    `variants` are suffixes that the question ids of one family differ in: `quick_buck` and `quick_buck_json` are one
    cluster with `_json`.
    """

    aligned: str
    coherent: str
    question: str
    cluster: str | None = None
    variants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RowFilter:
    """The rows to read: `equal` maps columns to values, and `exclude` are patterns of question ids such as `*_json`."""

    equal: Mapping[str, str]
    exclude: tuple[str, ...] = ()


def read_scored_answers(path: Path, columns: ScoreColumns, keep: RowFilter) -> list[ScoredAnswer]:
    """The scored answers in `path`, in the order of the file.

    A missing score is None with the status `undefined`, the words CODE and REFUSAL are None with theirs.

    Raises:
        DataError: the file cannot be read, a column is missing, a score is not a number from 0 to 100, or no row is
            left.
    """
    answers = []
    used = [columns.aligned, columns.coherent, columns.question, *([columns.cluster] if columns.cluster else [])]
    matched, excluded = dict.fromkeys(keep.equal, 0), dict.fromkeys(keep.exclude, 0)
    rows = 0
    for where, row in _rows(path):
        rows += 1
        for column in (*used, *keep.equal):
            if column not in row:
                raise DataError(f"{where}: no column {column!r}; the columns are {_listed(row, column)}")
        question = _text(row[columns.question])
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
    _check_filter(path, rows, matched, excluded, keep)
    if not answers:
        raise DataError(f"{path}: no row is left of {rows}; change --where or --exclude")
    return answers


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
    return ScoredAnswer(question, cluster, aligned, coherent, status if status != "ok" else coherent_status)


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


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row with its place for messages."""
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: not a file of scored answers; expected one of {', '.join(readers)}")
    try:
        yield from reader(path)
    except FileNotFoundError:
        beside = [str(other) for other in path.parent.glob(f"*{path.suffix}")]
        raise DataError(f"{path}: no such file{nearest(str(path), beside)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            for row in reader:
                where = f"{path}: line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: the row does not have the {len(reader.fieldnames or ())} columns")
                yield where, row
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num}: not CSV ({error})") from None


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}: line {number}: not JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}: line {number}: expected an object, found {type(row).__name__}")
            yield f"{path}: line {number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{path}: row {number}", row


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _listed(row: Mapping[str, Any], column: str) -> str:
    return ", ".join(map(str, row)) + nearest(column, list(map(str, row)))
