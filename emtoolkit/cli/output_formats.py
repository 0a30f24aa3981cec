"""The options `--json` and `--csv` of commands that list rows, and rows as CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from emtoolkit.errors import UserError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]


def check_one_format(*, as_json: bool, as_csv: bool) -> None:
    """Check that at most one of the options is given.

    Raises:
        UserError: both are.
    """
    if as_json and as_csv:
        raise UserError("--json and --csv exclude each other; give one of them")


def rows_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """`rows` as CSV with a header, first `columns` and then the other keys; an empty field is a missing value or NaN.

    Items of a list are joined by spaces; booleans are `true` and `false`, as in JSON.
    """
    text = io.StringIO()
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_field(row.get(name)) for name in names] for row in rows)
    return text.getvalue().removesuffix("\n")


def _field(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
