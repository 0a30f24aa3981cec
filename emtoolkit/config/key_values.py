"""The keys of a config as options: their names, and a text from a command line as a value of the key's type.

W&B's agent writes each parameter of a sweep as Python's `str` of its value: `None`, `True`, `1e-05`,
`['q_proj', 'v_proj']`, and nested parameters as `{'learning_rate': 1e-05}`.
"""

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from emtoolkit.config.sections import RunConfig
from emtoolkit.errors import ConfigError, nearest, shown
from emtoolkit.yaml_files import parse_yaml

_NULLS = ("None", "null")
_BOOLEANS = {"true": True, "false": False}
_WHOLE = re.compile(r"[-+]?[0-9]{1,100}")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_LONGEST_STRUCTURE = 100_000


def is_key(name: str) -> bool:
    """Whether `name` begins like a key of the config: with a dot in it, or as a key at the top of the config."""
    return "." in name or name.replace("-", "_") in RunConfig.model_fields


def key_names() -> list[str]:
    """Every dotted key of the config, sections left out."""
    return list(_names_in(RunConfig, ""))


def takes_boolean(name: str) -> bool:
    """Whether the key `name` is true or false, so that an option of this name may stand without a value.

    Raises:
        ConfigError: `name` is not a key of the config.
    """
    return bool in _alternatives(_resolved(name, "")[1])


def takes_text(name: str) -> bool:
    """Whether the value of the key `name` can be a text.

    Raises:
        ConfigError: `name` is not a key of the config.
    """
    return str in _alternatives(_resolved(name, "")[1])


def values_of(name: str, text: Any, origin: str) -> list[tuple[str, Any]]:
    """The dotted keys that the option `name` sets to `text`, with their values: several for a section.

    Args:
        name: a dotted key, with underscores or hyphens.
        text: the value as Python, JSON or YAML write it; a value that is no text stays as it is.
        origin: the option as the user typed it, for errors.

    Raises:
        ConfigError: `name` or a key within `text` is not a key of the config.
    """
    key, annotation = _resolved(name, text)
    return list(_assigned(key, annotation, _typed(text, _alternatives(annotation), origin), origin))


def _assigned(key: str, annotation: Any, value: Any, origin: str) -> Iterator[tuple[str, Any]]:
    alternatives = _alternatives(annotation)
    if isinstance(value, dict) and any(_is_section(kind) for kind in alternatives):
        for name, inner in value.items():
            inner_key, inner_annotation = _resolved(f"{key}.{name}", inner)
            inner = _typed(inner, _alternatives(inner_annotation), origin)
            yield from _assigned(inner_key, inner_annotation, inner, origin)
    else:
        yield key, value


def _resolved(name: str, value: Any) -> tuple[str, Any]:
    """The dotted key that `name` means, and its type."""
    key: list[str] = []
    annotation: Any = RunConfig
    for part in name.split("."):
        alternatives = _alternatives(annotation)
        section = next((kind for kind in alternatives if _is_section(kind)), None)
        mapping = next((kind for kind in alternatives if get_origin(kind) is dict), None)
        if section is not None and (field := part.replace("-", "_")) in section.model_fields:
            key.append(field)
            annotation = section.model_fields[field].annotation
        elif mapping is not None and part:
            key.append(part)
            annotation = get_args(mapping)[1]
        elif Any in alternatives and part:
            key.append(part)
        else:
            raise ConfigError(f"--{name}: unknown key (value {shown(value)}){_nearest_key(name)}")
    return ".".join(key), annotation


def _nearest_key(name: str) -> str:
    plain = name.replace("-", "_")
    names = key_names()
    found = nearest(f"--{plain}", [f"--{known}" for known in names])
    # Of a key in the wrong section, the last part is right.
    ends = [known for known in names if known.rpartition(".")[2] == plain.rpartition(".")[2]]
    return f"; did you mean '--{ends[0]}'?" if len(ends) == 1 else found or "; see 'emtoolkit schema config'"


def _typed(value: Any, alternatives: list[Any], origin: str) -> Any:
    """`value` as one of the types `alternatives`; as it is where it fits none, for the config to refuse."""
    whole = int in alternatives
    if isinstance(value, float) and value.is_integer() and whole:
        # To W&B 16 and 16.0 are one value.
        return int(value)
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text in _NULLS and type(None) in alternatives:
        return None
    if bool in alternatives and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if (whole or float in alternatives) and (number := _number(text, whole)) is not None:
        return number
    if text[:1] in ("[", "{", "(") and any(_is_structure(kind) for kind in alternatives):
        return _structure(text, origin)
    if Any in alternatives:
        return _structure(text, origin)
    return value


def _number(text: str, whole: bool) -> int | float | None:
    if _WHOLE.fullmatch(text):
        return int(text)
    if not _NUMBER.fullmatch(text) or not math.isfinite(number := float(text)):
        return None
    return int(number) if whole and number.is_integer() else number


def _structure(text: str, origin: str) -> Any:
    if len(text) > _LONGEST_STRUCTURE:
        raise ConfigError(f"{origin}: a value of {len(text):,} characters is too long; write it into the config")
    for parse in (ast.literal_eval, json.loads):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return list(value) if isinstance(value, tuple) else value
    return parse_yaml(text, origin)


def _alternatives(annotation: Any) -> list[Any]:
    """The types that a value of `annotation` can have: `[int, NoneType]` for `int | None`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    if origin is Literal:
        return [str]
    return [annotation]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and get_origin(kind) is None and issubclass(kind, BaseModel)


def _is_structure(kind: Any) -> bool:
    return _is_section(kind) or get_origin(kind) in (list, dict)


def _names_in(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        sections = [kind for kind in _alternatives(field.annotation) if _is_section(kind)]
        if sections:
            yield from _names_in(sections[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The dotted keys that setting `key` to `value` sets, one for each value within a mapping."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from leaves(f"{key}.{name}", inner)
    else:
        yield key, value
