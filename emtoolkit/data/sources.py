"""Where a data set is, a file or an id on the Hugging Face hub, and its rows as they stand there."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from emtoolkit.config.sections import RunConfig
from emtoolkit.data.hub import hub_rows
from emtoolkit.errors import ConfigError, DataError, NotHereError, first_line, nearest
from emtoolkit.paths import expand
from emtoolkit.progress import Progress

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
# How often a reader tells how far it is, in rows.
_OFTEN = 1000
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class File:
    """A file of one of the `SUFFIXES`."""

    path: Path

    @property
    def name(self) -> str:
        """Short, for a progress bar."""
        return self.path.name

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class HubDataset:
    """One split of a data set on the hub, at a branch, tag or commit."""

    id: str
    split: str = "train"
    revision: str | None = None

    @property
    def name(self) -> str:
        """Short, for a progress bar."""
        return self.id

    def __str__(self) -> str:
        return f"{self.id} ({self.split})"


Source = File | HubDataset


def source_of(config: RunConfig, dataset: str) -> Source:
    """Where `dataset` is: one of the config's datasets by its name, else a file, else an id on the hub.

    Raises:
        ConfigError: it is none of these, or the config gives a file a `split` or `revision`.
    """
    entry = config.datasets.get(dataset)
    if entry is not None:
        found = _file_or_hub(entry.path) or File(expand(entry.path).absolute())
        given = {name: value for name, value in (("split", entry.split), ("revision", entry.revision)) if value}
        if isinstance(found, HubDataset):
            return HubDataset(found.id, **given)
        for name, value in given.items():
            raise ConfigError(f"datasets.{dataset}.{name}: {value!r} is for an id on the hub, and {found} is a file")
        return found
    if (elsewhere := _file_or_hub(dataset)) is not None:
        return elsewhere
    names = sorted(config.datasets)
    raise ConfigError(
        f"dataset: {dataset!r} is neither a file ({', '.join(SUFFIXES)}), nor an id on the hub such as org/name, nor "
        f"one of the config's datasets: {', '.join(names) or 'there are none'}{nearest(dataset, names)}"
    )


def _file_or_hub(word: str) -> Source | None:
    if word.endswith(SUFFIXES) or expand(word).exists():
        return File(expand(word).absolute())
    return HubDataset(word) if _HUB_ID.fullmatch(word) else None


def raw_rows(source: Source, progress: Progress) -> Iterator[tuple[str, Any]]:
    """The rows of `source` in its order, each with its place: `line 3` of lines, else `row 3`; both count from 1.

    Raises:
        NotHereError: there is no such file, or the hub was needed and could not be asked.
        DataError: it cannot be read, or is not what its name says.
    """
    if isinstance(source, HubDataset):
        yield from _numbered(hub_rows(source.id, source.split, source.revision), progress, source.name)
        return
    path = source.path
    try:
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
        raise DataError(f"{path}: it cannot be read ({first_line(error)})") from None


def _json_lines(path: Path, file: BinaryIO, progress: Progress) -> Iterator[tuple[str, Any]]:
    size = path.stat().st_size
    lines: Any = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
    for number, line in enumerate(lines, start=1):
        if number % _OFTEN == 0:
            progress(f"reading {path.name}", file.tell(), size)
        if line.strip():
            yield f"line {number}", _parsed(line, f"{path}, line {number}")
    progress(f"reading {path.name}", size, size)


def _parsed(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: it is not JSON ({error})") from None


def _json_list(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        hint = "; a file with one row a line is called .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}, line {error.lineno}: it is not JSON ({error.msg}){hint}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: it is not JSON ({error})") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of rows, found {type(rows).__name__}")
    return rows


def _parquet_rows(path: Path, file: BinaryIO) -> tuple[int, Iterator[Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(file)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: it is not a Parquet file ({first_line(error)})") from None

    def rows() -> Iterator[Any]:
        try:
            for batch in opened.iter_batches(batch_size=_OFTEN):
                yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            raise DataError(f"{path}: it cannot be read ({first_line(error)})") from None

    return opened.metadata.num_rows, rows()


def _numbered(counted: tuple[int, Iterator[Any]], progress: Progress, name: str) -> Iterator[tuple[str, Any]]:
    count, rows = counted
    for number, row in enumerate(rows, start=1):
        if number % _OFTEN == 0 or number == count:
            progress(f"reading {name}", number, count)
        yield f"row {number}", row
