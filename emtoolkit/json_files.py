"""JSON that other programs or other people wrote: read whole and strictly, and typed when it is taken apart."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emtoolkit.errors import shown
from emtoolkit.regular_files import read_regular

# A manifest of 100,000 files has 20 MB; the state of a Trainer after a million steps has less.
LARGEST_JSON = 256_000_000
_DEEPEST = 100
_MOST_DIGITS = 300
_HALF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(path: Path, *, largest: int = LARGEST_JSON, finite: bool = True) -> Any:
    """The value in the JSON file at `path`, of at most `largest` bytes.

    Raises:
        OSError: the file cannot be read, is no regular file, or is larger.
        ValueError: as `parse_json`.
    """
    return parse_json(read_regular(path, largest), finite=finite)


def parse_json(content: bytes, *, finite: bool = True) -> Any:
    """The value in `content`; NaN and infinities only if not `finite`, as in what a Trainer writes.

    Raises:
        ValueError: not JSON, nested more than 100 levels deep, or a number or a text that cannot be written again; the
            text of the error is a phrase for the user.
    """
    try:
        value = json.loads(
            content,
            parse_int=_whole_number,
            parse_float=_finite_number if finite else None,
            parse_constant=_constant if finite else None,
        )
    except RecursionError:
        raise ValueError(f"nested more than {_DEEPEST} levels deep") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not text in UTF-8 ({error.reason})") from None
    if content.count(b"[") + content.count(b"{") > _DEEPEST and _is_deep(value):
        raise ValueError(f"nested more than {_DEEPEST} levels deep")
    if _HALF_A_PAIR.search(content):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half a surrogate pair, which no file can hold") from None
    return value


def object_in(value: Any, name: str = "") -> Mapping[str, Any]:
    """`value` as a JSON object; `name` is its key. Raises: ValueError, if it is of another type."""
    if not isinstance(value, dict):
        raise ValueError(f"{f'{name}: ' if name else ''}expected an object, found {shown(value)}")
    return value


def text_in(values: Mapping[str, Any], key: str) -> str:
    """The text under `key`. Raises: ValueError, if there is none."""
    if not isinstance(value := _under(values, key), str):
        raise ValueError(f"{key}: expected a text, found {shown(value)}")
    return value


def count_in(values: Mapping[str, Any], key: str) -> int:
    """The whole number from 0 on under `key`. Raises: ValueError, if there is none."""
    value = _under(values, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key}: expected a whole number from 0 on, found {shown(value)}")
    return value


def _under(values: Mapping[str, Any], key: str) -> Any:
    if key not in values:
        raise ValueError(f"{key}: the key is missing")
    return values[key]


def _whole_number(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(text):,} digits")
    return int(text)


def _finite_number(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"no floating-point number holds {shown(text)[1:-1]}")
    return number


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _is_deep(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEEPEST + 1):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
