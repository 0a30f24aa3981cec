"""JSON as the standard has it: Python's parser also takes NaN, and keeps the last of two equal keys."""

import json
from collections.abc import Iterable
from typing import Any

from emtoolkit.errors import DataError

_BETWEEN_ROWS = (" ", "\t", "\r", "\n", ",")


class _NotStandardError(ValueError):
    """Something that Python's parser would accept."""


def parse_line(line: bytes) -> Any:
    """The value in a line of UTF-8.

    Raises:
        DataError: the line is not valid JSON.
    """
    if b"\0" in line:
        raise DataError("the line holds null bytes, as text in UTF-16 does; save the file in UTF-8")
    try:
        return json.loads(line, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise DataError("not valid JSON (nested too deeply)") from None
    except ValueError as error:
        cut = "" if line.endswith(b"\n") else "; the file may end in the middle of a row"
        raise DataError(f"not valid JSON ({error}){cut}") from None


def parse_file(content: bytes) -> Any:
    """The value in a whole file.

    Raises:
        DataError: the file is not valid JSON; the text begins with the line.
    """
    try:
        text = content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"line {line}: not valid JSON ({error})") from None
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        hint = "; a file with one row per line needs the suffix .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"line {error.lineno}: not valid JSON ({error.msg}){hint}") from None
    except RecursionError:
        raise DataError("line 1: not valid JSON (nested too deeply)") from None
    except ValueError as error:
        raise DataError(f"line {_line_of_problem(text)}: not valid JSON ({error})") from None


def _line_of_problem(text: str) -> int:
    """The line of the first row that the strict parser refuses in a list that Python's own parser takes."""
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
    at = text.find("[") + 1
    while True:
        while text[at : at + 1] in _BETWEEN_ROWS:
            at += 1
        try:
            _, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return text.count("\n", 0, at) + 1


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _NotStandardError(f"the key {key!r} stands twice in one object")
        found[key] = value
    return found


def _constant(name: str) -> Any:
    raise _NotStandardError(f"{name} is no JSON number; write null, or leave the key out")
