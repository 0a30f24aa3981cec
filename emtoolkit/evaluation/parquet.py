"""Rows of a dataclass as a Parquet file, one column for each field."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from emtoolkit.errors import CheckpointError, DataError
from emtoolkit.storage.atomic import write_file

Row = TypeVar("Row")


def write_dataclasses(path: Path, kind: type[Any], rows: Sequence[Any]) -> None:
    """Write `rows`, instances of the dataclass `kind`, to `path`, atomically.

    A field that is neither a whole number, a float nor a truth value is a string.

    Raises:
        CheckpointError: the file cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    whole, real = pyarrow.int64(), pyarrow.float64()
    types: dict[Any, Any] = {int: whole, int | None: whole, float: real, float | None: real, bool: pyarrow.bool_()}
    schema = pyarrow.schema([(field.name, types.get(field.type, pyarrow.string())) for field in fields(kind)])
    table = pyarrow.Table.from_pylist([asdict(row) for row in rows], schema=schema)
    content = BytesIO()
    pyarrow.parquet.write_table(table, content)
    write_file(path, content.getvalue())


def read_dataclasses(path: Path, kind: type[Row], what: str) -> list[Row]:
    """The rows of `write_dataclasses`; `what` describes the file in an error.

    Raises:
        DataError: the file is not a Parquet file with the fields of `kind`.
        CheckpointError: the file cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        return [kind(**row) for row in pyarrow.parquet.read_table(path).to_pylist()]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not {what} ({str(error).splitlines()[0]})") from None
