"""Tables for notebooks: the same rows as a data frame and as HTML."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from emtoolkit.errors import UserError

if TYPE_CHECKING:
    import pandas

Row = Mapping[str, Any]


def data_frame(rows: Sequence[Row]) -> "pandas.DataFrame":
    """The rows as a data frame with a column for each key.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise UserError("to_dataframe: pandas is not installed; run pip install pandas") from error
    return pandas.DataFrame(rows)


def html_table(title: str, rows: Sequence[Row]) -> str:
    """The title and the rows as HTML; every text is escaped."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(row.get(name))}</td>' for name in columns)}</tr>" for row in rows)
    return f"<p>{escape(title)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))
