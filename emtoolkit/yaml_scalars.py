"""Unquoted words of YAML as values, by the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema).

PyYAML reads YAML 1.1, where `010` is 8, `1:30` is 90, `1_000` is 1000, `on` is true and `2024-01-02` is a date. Here
they are texts, and so are a number with leading zeros, which YAML 1.2 reads as 10 and other programs as 8, and a number
that no float holds, such as the commit `12e4567`.
"""

import math
import re
from typing import Any

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = {
    f"{sign}.{word}": float(f"{sign}{word}")
    for sign in ("", "+", "-")
    for word in ("inf", "Inf", "INF", "nan", "NaN", "NAN")
    if not (sign and word.lower() == "nan")
}
_WORDS = {
    **dict.fromkeys(("yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("no", "No", "NO", "off", "Off", "OFF"), False),
}
_UNDERSCORES = re.compile(r"[-+]?[0-9]+(_[0-9]+)+(\.[0-9]*)?([eE][-+]?[0-9]+)?")
_BASE_60 = re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
# No number of a config is longer, a float holds it, and Python does not write numbers of more than 4,300 digits.
_MOST_DIGITS = 300


class ScalarError(ValueError):
    """A word that its tag or its length rules out; the text is a phrase for the user."""


def scalar(word: str, tag: str | None, *, plain: bool) -> Any:
    """The value of `word`: of a `plain` word what YAML 1.2 reads, of a quoted word the text, of a tag the tag's type.

    Raises:
        ScalarError: the tag is unknown or does not fit, the number is too long, or a file cannot hold the text.
    """
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in word):
        raise ScalarError("the text holds a null byte or half a surrogate pair, which no file can hold; remove it")
    if tag in (None, "!"):
        return _plain(word) if plain and tag is None else word
    name = tag.removeprefix("tag:yaml.org,2002:") if tag else ""
    if name == "str":
        return word
    expected = {"int": (int,), "float": (int, float), "bool": (bool,), "null": (type(None),)}.get(name)
    if expected is None:
        raise ScalarError(f"the tag {tag} is not read; remove it")
    value = _plain(word)
    if not isinstance(value, expected) or (isinstance(value, bool) and name != "bool"):
        raise ScalarError(f"{word[:40]!r} does not have the type of its tag, {name}")
    return float(word) if name == "float" else value


def boolean_meant(value: Any) -> Any:
    """The boolean that the text `value` is in YAML 1.1, such as true for `on`; any other value unchanged."""
    return _WORDS.get(value, value) if isinstance(value, str) else value


def number_meant(value: Any, *, whole: bool) -> Any:
    """The number that the text `1_000` or, where a `whole` number is expected, `1e5` means; else `value` unchanged."""
    if isinstance(value, str) and len(value) < _MOST_DIGITS and _UNDERSCORES.fullmatch(value):
        value = number if isinstance(number := _plain(value.replace("_", "")), int | float) else value
    return int(value) if whole and isinstance(value, float) and value.is_integer() else value


def advice_for_number(value: Any) -> str:
    """How to write the text `value` as a number where YAML 1.1 and 1.2 differ, as the end of a sentence; else empty."""
    if not isinstance(value, str) or len(value) > _MOST_DIGITS:
        return ""
    if _LEADING_ZERO.fullmatch(value):
        return "; with a leading zero some programs read octal, so write the number without"
    return "; write one decimal number, without colons" if _BASE_60.fullmatch(value) else ""


def _plain(word: str) -> Any:
    if word in _NULL:
        return None
    if word in _BOOLEANS:
        return _BOOLEANS[word]
    if word in _SPECIAL:
        return _SPECIAL[word]
    if _INTEGER.fullmatch(word):
        if len(word) > _MOST_DIGITS:
            raise ScalarError(f"the number has {len(word):,} digits; write at most {_MOST_DIGITS}, or a text in quotes")
        return int(word, 0)
    if _FLOAT.fullmatch(word):
        number = float(word)
        mantissa = re.split("[eE]", word)[0]
        lost = math.isinf(number) or (number == 0 and any(digit in mantissa for digit in "123456789"))
        return word if lost else number
    return word
