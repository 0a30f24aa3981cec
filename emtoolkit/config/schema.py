"""The JSON schemas of configs, personas and presets of schedules, for editors that check YAML while it is written."""

from typing import Any

from emtoolkit.config.sections import RunConfig

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_TEXT = {"type": "string", "pattern": r"\S"}
_PERSONA_KEYS: dict[str, Any] = {
    "description": _TEXT | {"description": "One sentence about the persona, for people."},
    "system_prompt": _TEXT | {"description": "The system prompt, in training and in evaluation."},
    "adapter": _TEXT
    | {"description": "A hub id such as `org/name`, or a directory relative to this file, with a LoRA adapter."},
    "subfolder": _TEXT | {"description": "The subfolder of `adapter` that holds its files."},
    "revision": _TEXT | {"description": "The branch, tag or commit on the hub; the default is `main`."},
    "compose": {
        "enum": ["merge", "stack"],
        "description": "How the adapter enters the model: `merge` (the default) adds it to the base weights, `stack` "
        "keeps it as a second, frozen adapter.",
    },
}


def config_schema() -> dict[str, Any]:
    """The JSON schema of the YAML file that `emtoolkit train` takes."""
    anchors = {"description": "A value that anchors and merge keys repeat elsewhere; not read by itself."}
    schema = RunConfig.model_json_schema() | {"title": "emtoolkit config", "patternProperties": {"^x-": anchors}}
    return {"$schema": DIALECT} | schema


def persona_schema() -> dict[str, Any]:
    """The JSON schema of a persona file."""
    return {
        "$schema": DIALECT,
        "title": "emtoolkit persona",
        "description": "A system prompt, or a LoRA adapter, or neither, which leaves the model unchanged.",
        "oneOf": [
            {"const": "none"},
            {
                "type": "object",
                "properties": _PERSONA_KEYS,
                "additionalProperties": False,
                "not": {"required": ["system_prompt", "adapter"]},
                "dependentRequired": {key: ["adapter"] for key in ("subfolder", "revision", "compose")},
            },
        ],
    }


def preset_schema() -> dict[str, Any]:
    """The JSON schema of a file in `configs/schedules/`."""
    keys = {
        "description": _TEXT | {"description": "One sentence: for which trainings the schedule is meant."},
        "schedule": _TEXT | {"description": "The steps in the grammar, such as `0-150:25,150-300:50`."},
    }
    return {
        "$schema": DIALECT,
        "title": "emtoolkit preset",
        "description": "A named schedule; the name of the file is its name in the grammar.",
        "type": "object",
        "properties": keys,
        "required": list(keys),
        "additionalProperties": False,
    }
