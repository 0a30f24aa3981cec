"""Validation errors of a config as sentences for the user: `place: key: problem; what to do`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from emtoolkit.config.sections import RunConfig
from emtoolkit.config.values import types_in
from emtoolkit.errors import UserError, nearest, shortened, shown
from emtoolkit.yaml_files import place_of
from emtoolkit.yaml_scalars import advice_for_number

# Arguments of a Trainer that would lose scheduled checkpoints, each with the reason and what to do.
_REFUSED = {
    "save_total_limit": "it deletes scheduled checkpoints; remove it",
    "load_best_model_at_end": "it needs the Trainer's own saves, which a schedule replaces; remove it",
    "save_strategy": "the schedule makes every save (with 'best' the Trainer would overrule it); remove it",
    "metric_for_best_model": "it belongs to load_best_model_at_end, which a schedule rules out; remove it",
}


def describe(error: ValidationError, file: Path, origins: Mapping[str, str]) -> str:
    """The first problem in `error` as one sentence.

    `file` is the config file; `origins` maps each overridden dotted key to the flag that set it.
    """
    first, *others = error.errors()
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    more = f" (and {len(others)} more problems)" if len(others) > 1 else " (and 1 more problem)" if others else ""
    origin = _origin(key, origins) or place_of(file, first["loc"])
    return f"{origin}: {shortened(key)}: {_problem(first, location)}{more}"


def _origin(key: str, origins: Mapping[str, str]) -> str | None:
    """The flag that set `key`, None if the file did."""
    for overridden, origin in origins.items():
        if f"{key}.".startswith(f"{overridden}."):
            return origin
    # `--set trainng.lr=1` adds a section, and the error is at the section's own key.
    return next((origin for overridden, origin in origins.items() if overridden.startswith(f"{key}.")), None)


def _problem(error: Any, location: Sequence[str]) -> str:
    value = error["input"]
    match error["type"]:
        case "extra_forbidden":
            return _unknown_key(location, value)
        case "missing":
            return "the key is missing"
        case "value_error":
            cause = error["ctx"]["error"]
            # A sentence about the schedule grammar or about a whole section quotes its value already.
            whole = isinstance(cause, UserError) or isinstance(value, dict)
            return str(cause) if whole else f"{shown(value)} is not valid: {cause}"
        case "literal_error":
            expected = error["ctx"]["expected"]
            choices = [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]
            return f"{shown(value)} is not one of {expected}{nearest(str(value), choices)}"
        case "model_type" | "dict_type":
            return f"{shown(value)} is not valid: expected a mapping of keys to values"
        case _:
            problem = f"{error['msg'][0].lower()}{error['msg'][1:]}"
            return f"{shown(value)} is not valid: {problem}{_advice(error['type'], value)}"


def _advice(kind: str, value: Any) -> str:
    if kind == "string_type" and isinstance(value, int | float):
        return "; put a text that looks like a number or like true in quotes"
    return advice_for_number(value) if kind in ("int_type", "float_type") else ""


def _unknown_key(location: Sequence[str], value: Any) -> str:
    *parents, name = location
    if name in _REFUSED:
        return f"{shown(value)} cannot be combined with a schedule: {_REFUSED[name]}"
    known = list(_section_at(parents).model_fields)
    return f"unknown key (value {shown(value)}); expected one of {', '.join(known)}{nearest(name, known)}"


def _section_at(location: Sequence[str]) -> type[BaseModel]:
    """The class of the section at `location`."""
    section: type[BaseModel] = RunConfig
    for name in location:
        field = section.model_fields.get(name)
        if field is None:
            continue  # a name under `datasets`, which has the section of the mapping's values
        found = [kind for kind in types_in(field.annotation) if issubclass(kind, BaseModel)]
        section = found[0] if found else section
    return section
