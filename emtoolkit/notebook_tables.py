"""Tables for notebooks: the same rows as a data frame and as HTML."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from emtoolkit.errors import UserError

if TYPE_CHECKING:
    import pandas

Row = Mapping[str, Any]


class AsTable:
    """A value that a notebook shows as a table."""

    # Some of its subclasses have slots.
    __slots__ = ()

    def _title(self) -> str:
        return repr(self)

    def _rows(self) -> Sequence[Row]:
        """The rows; by default those of the items."""
        items: Any = self
        return [row for item in items for row in item._rows()]

    def rows(self) -> Sequence[Row]:
        """The rows of the table, a mapping from column to value each."""
        return self._rows()

    def _repr_html_(self) -> str:
        """The title and the rows as HTML; every text is escaped."""
        rows = self._rows()
        columns = list(dict.fromkeys(key for row in rows for key in row))
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        body = "".join(f"<tr>{''.join(f'<td>{_cell(row.get(name))}</td>' for name in columns)}</tr>" for row in rows)
        return f"<p>{escape(self._title())}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def to_dataframe(self) -> "pandas.DataFrame":
        """The rows of the table as a data frame with a column for each key; nothing is downloaded.

        Raises:
            UserError: pandas is not installed.
        """
        return data_frame(self._rows())


def data_frame(rows: Sequence[Row]) -> "pandas.DataFrame":
    """`rows` as a data frame with a column for each key.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise UserError("to_dataframe: pandas is not installed; run pip install pandas") from error
    return pandas.DataFrame(rows)


def checkpoint_row(step: int, final: bool, place: str, metadata: Mapping[str, Any]) -> Row:
    """The row of a checkpoint: step, place and the logged numbers and texts."""
    first = {"step": step, "final": final, "place": place}
    logged = {key: value for key, value in metadata.items() if isinstance(value, str | int | float)}
    return first | {key: value for key, value in logged.items() if key not in first}


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))
