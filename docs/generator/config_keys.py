"""The page on the keys of a config, from the models that read it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from docs.generator.markdown import cell
from emtoolkit.config.sections import RunConfig

_BEGINNING = """# Config keys

Every key of the YAML file that `emtoolkit train` takes, as the models that read it declare them.
[Configs](../guides/configs.md) explains how a file, `--set` and flags go together.
"""
_AT_THE_TOP = "Top level"
_KINDS = {
    "boolean": "`true`, `false`",
    "integer": "whole number",
    "null": "`null`",
    "object": "mapping",
    "string": "text",
}


def config_page() -> str:
    """Every section with its keys, in Markdown."""
    schema = RunConfig.model_json_schema()
    sections = [(_AT_THE_TOP, schema), *_sections(schema, schema["$defs"])]
    return "\n".join([_BEGINNING, *(_section(path, model, schema["$defs"]) for path, model in sections)])


def _sections(
    model: Mapping[str, Any], definitions: Mapping[str, Any], above: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The sections in `model` by their dotted keys, each before those in it; `datasets.NAME` stands for each of a
    mapping's.
    """
    for key, field in model["properties"].items():
        for name in _references(field):
            mapping = field.get("type") == "object" or any(
                one.get("type") == "object" for one in field.get("anyOf", ())
            )
            path = f"{above}{key}.NAME" if mapping else f"{above}{key}"
            yield path, definitions[name]
            yield from _sections(definitions[name], definitions, f"{path}.")


def _references(field: Mapping[str, Any]) -> Iterator[str]:
    if "$ref" in field:
        yield field["$ref"].rpartition("/")[2]
    for inner in (*field.get("anyOf", ()), *field.get("allOf", ()), field.get("additionalProperties")):
        if isinstance(inner, Mapping):
            yield from _references(inner)


def _section(path: str, model: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    required = model.get("required", ())
    heading = f"## {path}" if path == _AT_THE_TOP else f"## `{path}`"
    rows = ["| key | values | meaning |", "|---|---|---|"]
    above = "" if path == _AT_THE_TOP else path.replace(".", "").lower()
    rows += [_row(key, field, key in required, above) for key, field in model["properties"].items()]
    return "\n".join([f"{heading}\n", f"{model.get('description', '').strip()}\n", *rows, ""])


def _row(key: str, field: Mapping[str, Any], required: bool, above: str) -> str:
    if next(_references(field), None) is None:
        values, default = _values(field), f"default {_value(field.get('default'))}"
    else:
        mapping = "additionalProperties" in field
        none = " or `null`" if any(one.get("type") == "null" for one in field.get("anyOf", ())) else ""
        values = f"[sections by name](#{above}{key}name)" if mapping else f"[section](#{above}{key}){none}"
        default = ""
    below = "required" if required else default
    return f"| `{key}` | {'<br>'.join(filter(None, (values, below)))} | {cell(field.get('description', ''))} |"


def _values(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_values(one) for one in field["anyOf"])
    if "enum" in field:
        return ", ".join(_value(one) for one in field["enum"])
    if "const" in field:
        return _value(field["const"])
    kind = field.get("type", "anything")
    if kind == "array":
        return f"list: {_values(field['items'])}"
    text = _KINDS.get(kind, kind)
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[name]}" for name, sign in bounds.items() if name in field]
    return f"{text} {', '.join(limits)}".strip()


def _value(value: Any) -> str:
    if value is None:
        return "`null`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"
