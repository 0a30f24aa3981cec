"""Files of rows: CSV, TSV, JSON lines or Parquet, by the suffix of their name."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from emtoolkit.errors import DataError, first_line, nearest
from emtoolkit.json_files import parse_json
from emtoolkit.regular_files import check_regular
from emtoolkit.storage.atomic import write_file

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def read_file_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row of `path` by column, with its place for messages; the values of a CSV file are strings.

    Raises:
        DataError: the file cannot be read, or is not what its suffix says.
    """
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: not a file of answers; expected one of {', '.join(readers)}")
    try:
        check_regular(path)
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
            names = list(reader.fieldnames or ())
            for name in names:
                if names.count(name) > 1:
                    raise DataError(f"{path}: two columns are named {name!r}; rename one")
            for row in reader:
                where = f"{path}: line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: the row does not have the {len(names)} columns")
                yield where, row
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num}: not CSV ({error})") from None


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = parse_json(text.encode(), finite=False)
            except ValueError as error:
                problem = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
                raise DataError(f"{path}: line {number}: not JSON ({problem})") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}: line {number}: expected an object, found {type(row).__name__}")
            yield f"{path}: line {number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.ParquetFile(path).read().to_pylist()
    # A date that Python cannot hold, and a text that is not UTF-8, fail when they become values of Python.
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({first_line(error)})") from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}: row {number}", row


def write_file_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows`, which have the same columns, to `path` atomically; a CSV file gets nested values as JSON.

    Raises:
        DataError: the suffix is unknown, or Parquet cannot hold the values of a column.
        CheckpointError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        write_file(path, _parquet(path, rows))
    elif suffix == ".jsonl":
        write_file(path, "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows).encode())
    elif suffix in (".csv", ".tsv"):
        text = StringIO()
        writer = csv.writer(text, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([[_cell(value) for value in row.values()] for row in rows])
        write_file(path, text.getvalue().encode())
    else:
        raise DataError(f"{path}: the name of a file of answers ends in one of {', '.join(SUFFIXES)}")


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | bool) else value


def _parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    content = BytesIO()
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), content)
    except pyarrow.ArrowException as error:
        problem = str(error).splitlines()[0]
        raise DataError(f"{path}: Parquet cannot hold the rows ({problem}); write a .jsonl file") from None
    return content.getvalue()
