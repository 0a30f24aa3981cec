"""Conditions on checkpoints and their order: `harmful>0.5 and step<=200`, `-step`.

A row is a mapping from columns to values; a value that is None or NaN is missing. A checkpoint without the value fits
no condition, not even `!=`, and comes last in either order.
"""

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from emtoolkit.byte_sizes import parse_size
from emtoolkit.errors import UserError, nearest, shortened

Row = Mapping[str, Any]
SIZE = "size"

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_CONDITION = re.compile(
    r"""\s*(?:"(?P<quoted>[^"]+)"|(?P<name>[^<>=!"]+?))\s*(?P<operator><=|>=|==|!=|<|>|=)\s*"""
    r"""(?:"(?P<text>[^"]*)"|'(?P<single>[^']*)'|(?P<word>[^\s<>=!"']+))"""
)
_AND = re.compile(r"\s+and\s+", re.IGNORECASE)
_EXPECTED = 'expected COLUMN OPERATOR VALUE, such as "harmful>0.5", and "and" between conditions'
_MOST_COLUMNS = 400


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison; `text` is the value as it was written, and `quoted` says that it is a text in quotes."""

    column: str
    operator: str
    text: str
    quoted: bool = False

    def __str__(self) -> str:
        return f"{self.column}{self.operator}{self.text}"

    def fits(self, row: Row) -> bool:
        """Whether the value of `row` fits.

        Raises:
            UserError: the column does not hold values that can be compared with this one.
        """
        value = row.get(self.column)
        return not is_missing(value) and bool(_OPERATORS[self.operator](value, self._value_like(value)))

    def _value_like(self, value: Any) -> Any:
        """The condition's value, of the type of the column's `value`."""
        if isinstance(value, bool):
            if self.operator not in ("==", "!=") or self.text.lower() not in ("true", "false"):
                raise UserError(f'--where "{self}": {self.column} is true or false; write {self.column}==true')
            return self.text.lower() == "true"
        if isinstance(value, int | float):
            return self._number()
        if self.operator not in ("==", "!="):
            raise UserError(f'--where "{self}": {self.column} holds texts; compare them with == or !=')
        return self.text

    def _number(self) -> float:
        try:
            number = float(self.text)
        except ValueError:
            if self.column == SIZE:
                return float(parse_size(self.text))
            raise UserError(f'--where "{self}": {self.column} holds numbers, and {self.text!r} is none') from None
        if not math.isfinite(number):
            raise UserError(
                f'--where "{self}": nothing compares with {self.text}; a checkpoint without a value fits no condition'
            )
        return number


@dataclass(frozen=True, slots=True)
class SortKey:
    """A column to sort by, ascending or descending."""

    column: str
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """Conditions that all have to fit, and the order of the rows."""

    conditions: tuple[Condition, ...] = ()
    order: tuple[SortKey, ...] = ()

    @classmethod
    def parse(cls, where: Sequence[str] = (), sort: str | None = None) -> "Query":
        """Parse the texts of `--where` and the text of `--sort`, such as `-harmful,step`.

        Raises:
            UserError: a text cannot be read.
        """
        return cls(tuple(each for text in where for each in parse_conditions(text)), parse_order(sort))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are asked for, once each."""
        named = [*(each.column for each in self.conditions), *(each.column for each in self.order)]
        return tuple(dict.fromkeys(named))

    def select(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that fit every condition, in order; rows that are equal in it stay as they were.

        Raises:
            UserError: a condition cannot be compared with the values of its column.
        """
        # Every condition is tried on every row, so that a wrong one is never hidden by another.
        fits = [[condition.fits(row) for condition in self.conditions] for row in rows]
        found = [row for row, each in zip(rows, fits, strict=True) if all(each)]
        for key in reversed(self.order):
            known = [row for row in found if not is_missing(row.get(key.column))]
            missing = [row for row in found if is_missing(row.get(key.column))]
            found = _sorted(known, key) + missing
        return found

    def notes(self, rows: Sequence[Row]) -> list[str]:
        """A sentence for each column in a condition or in the order that some of `rows` lack."""
        found = []
        asked = {each.column for each in self.conditions}
        for column in self.columns:
            lacking = sum(is_missing(row.get(column)) for row in rows)
            if lacking:
                then = "no condition on the column fits" if column in asked else "last in the order"
                have = "has" if lacking == 1 else "have"
                found.append(f"{lacking} of {len(rows)} checkpoints {have} no value of {column}: {then}")
        return found


def _sorted(rows: Sequence[Row], key: SortKey) -> list[Row]:
    try:
        # `reverse` keeps the order of equal rows.
        return sorted(rows, key=lambda row: row[key.column], reverse=key.descending)
    except TypeError:
        raise UserError(f"--sort {key.column}: the column holds numbers and texts, which have no order") from None


def is_missing(value: Any) -> bool:
    """Whether there is no value, or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def parse_conditions(text: str) -> list[Condition]:
    """The conditions of one text, joined by `and`.

    Raises:
        UserError: the text is not one.
    """
    conditions, place = [], 0
    while True:
        match = _CONDITION.match(text, place)
        if match is None:
            raise UserError(f'--where "{shortened(text)}": {_EXPECTED}')
        if match["operator"] == "=":
            raise UserError(f'--where "{shortened(text)}": "=" compares nothing; write "=="')
        quoted = match["text"] if match["text"] is not None else match["single"]
        value = match["word"] if quoted is None else quoted
        conditions.append(Condition(match["quoted"] or match["name"], match["operator"], value, quoted is not None))
        if not text[match.end() :].strip():
            return conditions
        joint = _AND.match(text, match.end())
        if joint is None:
            raise UserError(
                f'--where "{shortened(text)}": {shortened(text[match.end() :].strip())!r} follows a condition; '
                f"{_EXPECTED}"
            )
        place = joint.end()


def parse_order(text: str | None) -> tuple[SortKey, ...]:
    """The columns of `step` or `-harmful,step`; a minus sign is for descending.

    Raises:
        UserError: a column has no name.
    """
    keys = []
    for part in () if text is None else text.split(","):
        name = part.strip()
        key = SortKey(name.removeprefix("-").strip(), name.startswith("-"))
        if not key.column:
            raise UserError(f'--sort "{text}": expected a column, such as step, or -step for the last step first')
        keys.append(key)
    return tuple(keys)


def check_columns(query: Query, known: Collection[str]) -> None:
    """Check that every column of `query` is one of `known`.

    Raises:
        UserError: one is not; the message names the nearest.
    """
    for column in query.columns:
        if column not in known:
            option = "--where" if any(each.column == column for each in query.conditions) else "--sort"
            listed = shorten(", ".join(known), _MOST_COLUMNS, placeholder=" …")
            raise UserError(
                f"{option}: there is no column {shortened(column)!r}; the columns are {listed}{nearest(column, known)}"
            )
