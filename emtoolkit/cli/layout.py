"""The forms in which results are printed: tables that fit the terminal, facts, and lines of text."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from emtoolkit.schedules.steps import elided

_GAP = 2
# Wider than any terminal: what a cell would take if there were room.
_UNBOUNDED = 100_000
# More steps than fit here are elided on any terminal; writing out a million of them would take minutes.
_LONGEST_STEPS = 200
# In a name from a file of somebody else these would move the cursor, or turn the line around.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class ElidedSteps:
    """Steps on one line of the console's width: the middle is left out where the line does not fit."""

    steps: Sequence[int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(elided(self.steps, options.max_width), no_wrap=True, overflow="ignore")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = elided(self.steps, min(options.max_width, _LONGEST_STEPS))
        return Measurement(len(elided(self.steps, 1)), len(longest))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `Records`. With `at_least` it may become narrower than its content, down to that many characters."""

    name: str
    align: Literal["left", "right"] = "right"
    at_least: int | None = None


@dataclass(frozen=True, slots=True)
class Records:
    """A table that fits the terminal.

    Where the terminal is too narrow, columns with one value for all records become lines above the table. If that is
    not enough, the records stand below each other with a line for each value.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[RenderableType]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for header_in_lines in (False, True):
            table = self._table(header_in_lines=header_in_lines)
            if self._narrowest(console, options, table) <= options.max_width:
                yield table
                return
        constant = [i for i in range(len(self.columns)) if len(self.rows) > 1 and self._is_constant(i)]
        if 0 < len(constant) < len(self.columns):
            yield facts((self.columns[i].name, self.rows[0][i]) for i in constant)
            yield Text()
            varying = [i for i in range(len(self.columns)) if i not in constant]
            yield Records([self.columns[i] for i in varying], [[row[i] for i in varying] for row in self.rows])
            return
        for number, row in enumerate(self.rows, start=1):
            if number > 1:
                yield Text()
            yield facts([(column.name, value) for column, value in zip(self.columns, row, strict=True)])

    def _is_constant(self, column: int) -> bool:
        first = self.rows[0][column]
        return isinstance(first, str) and all(row[column] == first for row in self.rows)

    def _table(self, *, header_in_lines: bool) -> Table:
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
        for column in self.columns:
            header = column.name.replace(" ", "\n") if header_in_lines else column.name
            table.add_column(
                _text(header),
                justify=column.align,
                no_wrap=column.at_least is None,
                overflow="fold",
                vertical="top",
            )
        for row in self.rows:
            table.add_row(*(_text(value) if isinstance(value, str) else value for value in row))
        return table

    def _narrowest(self, console: Console, options: ConsoleOptions, table: Table) -> int:
        """The least width at which `table` is readable."""
        wide = options.update(max_width=_UNBOUNDED)
        widths = [
            max(Measurement.get(console, wide, cell).maximum for cell in (column.header, *column.cells))
            for column in table.columns
        ]
        return _GAP * (len(widths) - 1) + sum(
            width if column.at_least is None else min(width, column.at_least)
            for column, width in zip(self.columns, widths, strict=True)
        )


def facts(pairs: Iterable[tuple[str, RenderableType]]) -> Table:
    """Names with their values beside them; long values take several lines."""
    table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(_text(name), _text(value) if isinstance(value, str) else value)
    return table


def prose(text: str) -> Text:
    """Sentences, broken between words."""
    return _text(text)


def line(text: str) -> Text:
    """A line with a path or a command, which is never broken so that it can be copied."""
    return Text(_escaped(text), no_wrap=True, overflow="ignore")


def _text(text: str) -> Text:
    return Text(_escaped(text))


def _escaped(text: str) -> str:
    """`text` with its control characters written out; line breaks stay."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def here(path: Path) -> str:
    """`path` relative to the working directory if it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
