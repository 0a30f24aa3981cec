"""Validation errors of a config as sentences for the user: `place: key: problem; what to do`."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from emtoolkit.config.sections import RunConfig
from emtoolkit.errors import UserError, nearest

# Words that belong to a Trainer and would break a schedule; worth more than "unknown key".
_REFUSED = {
    "save_total_limit": "it deletes scheduled checkpoints; remove it",
    "load_best_model_at_end": "it needs the Trainer's own saves, which a schedule replaces; remove it",
    "save_strategy": "the schedule owns every save (with 'best' the Trainer would overrule it); remove it",
    "metric_for_best_model": "it belongs to load_best_model_at_end, which cannot go with a schedule; remove it",
}


def describe(error: ValidationError, file: str, origins: Mapping[str, str]) -> str:
    """The first problem in `error` as one sentence.

    `file` is the config file; `origins` maps dotted keys that were overridden to the flag that set them.
    """
    first, *others = error.errors()
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    source = next((origin for k, origin in origins.items() if f"{key}.".startswith(f"{k}.")), None)
    if source is None:
        # `--set trainng.lr=1` makes a section that the file does not have.
        source = next((origin for k, origin in origins.items() if k.startswith(f"{key}.")), file)
    if first["type"] == "extra_forbidden":
        problem = _unknown_key(location, first["input"])
    elif first["type"] == "missing":
        problem = "the key is missing"
    elif first["type"] == "value_error":
        problem = _of_our_own(first)
    elif first["type"] == "literal_error":
        expected = first["ctx"]["expected"]
        choices = [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]
        problem = f"{first['input']!r} is not one of {expected}{nearest(str(first['input']), choices)}"
    else:
        wanted = first["msg"][0].lower() + first["msg"][1:]
        problem = f"{first['input']!r} is not valid: {wanted}"
    more = f" (and {len(others)} more problems)" if len(others) > 1 else " (and 1 more problem)" if others else ""
    return f"{source}: {key}: {problem}{more}"


def _of_our_own(first: Any) -> str:
    cause = first["ctx"]["error"]
    # A sentence of the schedule grammar quotes its own value already, and so does one about the whole section.
    if isinstance(cause, UserError) or isinstance(first["input"], dict):
        return str(cause)
    return f"{first['input']!r} is not valid: {cause}"


def _unknown_key(location: Sequence[str], value: Any) -> str:
    *parents, name = location
    if name in _REFUSED:
        return f"{value!r} cannot go with a schedule: {_REFUSED[name]}"
    known = list(_section_at(parents).model_fields)
    return f"unknown key (value {value!r}); expected one of {', '.join(known)}{nearest(name, known)}"


def _section_at(location: Sequence[str]) -> type[BaseModel]:
    """The model class of the section at `location`."""
    section: type[BaseModel] = RunConfig
    for name in location:
        field = section.model_fields.get(name)
        if field is None:
            continue  # the name of a dataset, whose section comes with the mapping
        found = [kind for kind in _classes_in(field.annotation) if issubclass(kind, BaseModel)]
        section = found[0] if found else section
    return section


def _classes_in(annotation: Any) -> list[type]:
    inner = getattr(annotation, "__args__", ())
    return [annotation] if isinstance(annotation, type) and not inner else [c for a in inner for c in _classes_in(a)]
