"""The base class of the sections and the types of their values: each with its check and its JSON schema."""

import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from emtoolkit.errors import ScheduleError, shown
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.yaml_scalars import boolean_meant, number_meant


class Section(BaseModel):
    """A section of a config: immutable, with no unknown key, no conversion of types, and finite numbers only."""

    # The text below a field describes the key in the JSON schema, in editors and in the reference.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, values: Any) -> Any:
        """Read `1e5`, `1_000` and `on` by the type of their key; a text stays a text."""
        if not isinstance(values, Mapping):
            return values
        kinds = {name: types_in(field.annotation) for name, field in cls.model_fields.items()}
        return {key: _meant(value, kinds.get(key, ())) for key, value in values.items()}


def numbers_by_type(section: Section) -> dict[str, Any]:
    """The values of `section`; a number of a key that takes fractions is a float, however it was written."""
    values = section.model_dump()
    fractions = [name for name, field in type(section).model_fields.items() if float in types_in(field.annotation)]
    # Adding zero makes 0.0 of -0.0.
    return values | {name: float(values[name]) + 0.0 for name in fractions}


def types_in(annotation: Any) -> list[type]:
    """The classes in an annotation, such as int and None of `Positive | None`, or str of `list[str]`."""
    inner = getattr(annotation, "__args__", ())
    return [annotation] if isinstance(annotation, type) and not inner else [c for a in inner for c in types_in(a)]


def _meant(value: Any, kinds: Collection[type]) -> Any:
    if str in kinds:
        return value
    if isinstance(value, list):
        return [_meant(entry, kinds) for entry in value]
    if bool in kinds:
        return boolean_meant(value)
    if int in kinds or float in kinds:
        # A key that takes fractions, too, reads 1.0 as the fraction.
        whole = int in kinds and not (float in kinds and isinstance(value, float) and value <= 1)
        return number_meant(value, whole=whole)
    return value


def finite(value: Any) -> Any:
    """`value`, in which no number is `.inf` or `.nan`, at any depth.

    Raises:
        ValueError: a number is one of them.
    """
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        finite(inner)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value


def _interval(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, float) and 0 < value < 1:
        return value
    raise ValueError("expected a number of steps (1 or more), or a fraction of the run between 0 and 1")


def _step_list(value: object) -> object:
    whole = isinstance(value, list) and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in value)
    if whole and value:
        return value
    raise ValueError("expected a list of steps such as [0, 10, 100]")


def _grammar(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError(f"expected a schedule such as dense-early or '0-150:25,300-:100'{_as_schedule(value)}")
    Schedule.parse(value)
    return value


def _as_schedule(value: object) -> str:
    """The advice for `value` in place of a schedule; empty if it means none."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        every = f"write every:{value} for every {value} steps, or " if value else "write "
        return f"; {every}'{value}' in quotes for that step"
    if isinstance(value, list) and value and all(isinstance(term, str | int) for term in value):
        terms = ",".join(str(term) for term in value)
        with suppress(ScheduleError):
            Schedule.parse(terms)
            return f"; write {shown(terms)}, a text and not a list"
    return ""


def _known_grammar(value: object) -> object:
    Schedule.parse(str(_grammar(value))).check_known()
    return value


def _target_modules(value: object) -> object:
    names = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    if not names and value != "all-linear":
        raise ValueError("expected a list of names such as [q_proj, v_proj], or all-linear")
    return value


Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
# Hugging Face's rule for `save_steps` and `eval_steps`.
Interval = Annotated[
    int | float,
    BeforeValidator(_interval),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            ]
        }
    ),
]
StepList = Annotated[
    list[int],
    BeforeValidator(_step_list),
    WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}),
]
Grammar = Annotated[str, BeforeValidator(_grammar), WithJsonSchema({"type": "string"})]
# A schedule whose steps are known before training.
KnownGrammar = Annotated[str, BeforeValidator(_known_grammar), WithJsonSchema({"type": "string"})]
TargetModules = Annotated[
    list[str] | Literal["all-linear"],
    BeforeValidator(_target_modules),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "string"}, "minItems": 1}, {"const": "all-linear"}]}),
]
