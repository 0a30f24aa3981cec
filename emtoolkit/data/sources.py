"""The source of a dataset, a file or an id on the Hugging Face hub, and its rows before any conversion."""

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from emtoolkit.config.sections import DatasetConfig
from emtoolkit.data.hub import hub_rows
from emtoolkit.data.strict_json import parse_file, parse_line
from emtoolkit.errors import ConfigError, DataError, NotHereError, first_line, located, nearest
from emtoolkit.paths import expand
from emtoolkit.progress import Progress
from emtoolkit.regular_files import check_regular
from emtoolkit.storage.git_lfs import pointer_problem

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
# The number of rows between two reports of progress.
_ROWS_PER_REPORT = 1000
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class File:
    """A file with one of the `SUFFIXES`."""

    path: Path

    @property
    def name(self) -> str:
        """A short name for a progress bar."""
        return self.path.name

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class HubDataset:
    """One split of a dataset on the hub, at a branch, tag or commit; `revision` None means `main`."""

    id: str
    split: str = "train"
    revision: str | None = None

    @property
    def name(self) -> str:
        """A short name for a progress bar."""
        return self.id

    def __str__(self) -> str:
        return f"{self.id} ({self.split})"


Source = File | HubDataset


def source_of(dataset: str, datasets: Mapping[str, DatasetConfig]) -> Source:
    """The source of `dataset`: a name in `datasets`, else a file, else an id on the hub.

    Raises:
        ConfigError: `dataset` is none of these, or a file in `datasets` has a `split` or a `revision`.
    """
    entry = datasets.get(dataset)
    if entry is not None:
        found = _file_or_hub(entry.path) or File(expand(entry.path).absolute())
        given = {name: value for name, value in (("split", entry.split), ("revision", entry.revision)) if value}
        if isinstance(found, HubDataset):
            return HubDataset(found.id, **given)
        for name, value in given.items():
            raise ConfigError(
                f"datasets.{dataset}.{name}: {value!r} applies only to an id on the hub; {found} is a file, so remove "
                "the key"
            )
        return found
    if (elsewhere := _file_or_hub(dataset)) is not None:
        return elsewhere
    names = sorted(datasets)
    raise ConfigError(
        f"dataset: {dataset!r} is neither a file ({', '.join(SUFFIXES)}), nor an id on the hub such as org/name, nor "
        f"one of the config's datasets: {', '.join(names) or 'none'}{nearest(dataset, names)}"
    )


def _file_or_hub(word: str) -> Source | None:
    if word.endswith(SUFFIXES) or expand(word).exists():
        return File(expand(word).absolute())
    return HubDataset(word) if _HUB_ID.fullmatch(word) else None


def raw_rows(source: Source, progress: Progress) -> Iterator[tuple[str, Any]]:
    """The rows of `source` in its order, each with its place: `line 3` in a file of lines, else `row 3`, from 1.

    Raises:
        NotHereError: the file does not exist, or the hub cannot be reached.
        DataError: the file cannot be read, or its content does not fit its suffix.
    """
    if isinstance(source, HubDataset):
        yield from _numbered(hub_rows(source.id, source.split, source.revision), progress, source.name)
        return
    path = source.path
    try:
        check_regular(path)
        if (problem := pointer_problem(path)) is not None:
            raise DataError(f"{path}: {problem}")
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            with path.open("rb") as file:
                yield from _json_lines(path, file, progress)
        elif path.suffix == ".json":
            rows = _json_list(path)
            yield from _numbered((len(rows), iter(rows)), progress, path.name)
        elif path.suffix == ".parquet":
            with path.open("rb") as file:
                yield from _numbered(_parquet_rows(path, file), progress, path.name)
        else:
            raise DataError(f"{path}: expected a file whose name ends in {', '.join(SUFFIXES)}")
    except FileNotFoundError:
        raise NotHereError(f"{path}: there is no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from None


def _json_lines(path: Path, file: BinaryIO, progress: Progress) -> Iterator[tuple[str, Any]]:
    size = path.stat().st_size
    lines: Any = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            if number % _ROWS_PER_REPORT == 0:
                progress(f"reading {path.name}", file.tell(), size)
            if line.strip():
                with located(f"{path}, line {number}"):
                    row = parse_line(line)
                yield f"line {number}", row
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}, line {number + 1}: cannot be read ({first_line(error)})") from None
    progress(f"reading {path.name}", size, size)


def _json_list(path: Path) -> list[Any]:
    try:
        rows = parse_file(path.read_bytes())
    except DataError as error:
        raise DataError(f"{path}, {error}") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of rows, found {type(rows).__name__}")
    return rows


def _parquet_rows(path: Path, file: BinaryIO) -> tuple[int, Iterator[Any]]:
    import pyarrow
    from pyarrow import parquet

    # Names and texts that are not UTF-8, and dates that Python cannot hold, are errors of Python.
    failures = (pyarrow.ArrowException, ValueError, OverflowError)
    try:
        opened = parquet.ParquetFile(file)
    except failures as error:
        raise DataError(f"{path}: not a valid Parquet file ({first_line(error)})") from None

    def rows() -> Iterator[Any]:
        try:
            for batch in opened.iter_batches(batch_size=_ROWS_PER_REPORT):
                yield from batch.to_pylist()
        except failures as error:
            raise DataError(f"{path}: cannot be read ({first_line(error)})") from None

    return opened.metadata.num_rows, rows()


def _numbered(counted: tuple[int, Iterator[Any]], progress: Progress, name: str) -> Iterator[tuple[str, Any]]:
    count, rows = counted
    for number, row in enumerate(rows, start=1):
        if number % _ROWS_PER_REPORT == 0 or number == count:
            progress(f"reading {name}", number, count)
        yield f"row {number}", row
