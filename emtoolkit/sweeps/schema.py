"""The JSON schema of a sweep file, as emtoolkit reads it without a server.

The keys are those of W&B's sweep configuration (https://docs.wandb.ai/models/sweeps/sweep-config-keys).
"""

from typing import Any

from emtoolkit.config.schema import DIALECT

_TEXT = {"type": ["string", "null"]}
_NESTED: dict[str, Any] = {
    "type": "object",
    "description": "Parameters within a section, which a run gets as one mapping.",
    "properties": {
        "parameters": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"anyOf": [{"$ref": "#/$defs/parameter"}, {"$ref": "#/$defs/nested"}]},
        }
    },
    "required": ["parameters"],
    "additionalProperties": False,
}
_PARAMETER: dict[str, Any] = {
    "type": "object",
    "description": "The values of one option: value, values, or min and max.",
    "properties": {
        "value": {"description": "The only value."},
        "values": {"type": "array", "minItems": 1, "description": "The values of a grid, or the choices of a draw."},
        "probabilities": {
            "type": "array",
            "items": {"type": "number", "minimum": 0},
            "description": "The probability of each of `values`, 1 in total; only for method random.",
        },
        "min": {"type": "number", "description": "The smallest value."},
        "max": {"type": "number", "description": "The largest value."},
        "q": {"type": "number", "exclusiveMinimum": 0, "description": "Values are rounded to multiples of this."},
        "distribution": {
            "description": "How values are drawn; by default it follows from the other keys.",
            "enum": [
                "constant",
                "categorical",
                "categorical_w_probabilities",
                "uniform",
                "int_uniform",
                "q_uniform",
                "log_uniform_values",
                "q_log_uniform_values",
            ],
        },
    },
    "anyOf": [{"required": ["value"]}, {"required": ["values"]}, {"required": ["min", "max"]}],
    "additionalProperties": False,
}
_KEYS: dict[str, Any] = {
    "method": {
        "enum": ["grid", "random"],
        "description": "`grid` runs every combination of values, `random` draws `run_cap` of them.",
    },
    "parameters": {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"anyOf": [{"$ref": "#/$defs/parameter"}, {"$ref": "#/$defs/nested"}]},
        "description": "The options that differ between runs, by their names on the command line, such as "
        "`training.learning_rate`.",
    },
    "program": _TEXT | {"description": "What `${program}` in `command` stands for."},
    "command": {
        "type": ["array", "null"],
        "items": {"type": ["string", "number"]},
        "description": "The arguments of one run, with macros such as `${program}`, `${args}` and `${envvar:NAME}`. "
        "The default is `${env} ${interpreter} ${program} ${args}`.",
    },
    "project": _TEXT | {"description": "The W&B project of the runs, unless `$WANDB_PROJECT` is set."},
    "entity": _TEXT | {"description": "The W&B user or team of the runs, unless `$WANDB_ENTITY` is set."},
    "run_cap": {"type": ["integer", "null"], "minimum": 1, "description": "The largest number of runs."},
    "slurm": {
        "type": ["object", "null"],
        "additionalProperties": {"type": ["string", "number", "boolean"]},
        "description": "Options of `sbatch` for `emtoolkit sweep --on slurm`, such as `partition: gpu`; "
        "`scratch: $TMPDIR` lets the runs write to a disk of their node.",
    },
    "name": {"description": "A name for W&B's pages."},
    "description": {"description": "A text for W&B's pages."},
    "metric": {
        "type": "object",
        "description": "The metric that W&B's pages show; emtoolkit does not read it.",
        "properties": {
            "name": {"type": "string"},
            "goal": {"enum": ["minimize", "maximize"]},
            "target": {"type": "number"},
        },
        "additionalProperties": False,
    },
    "apiVersion": {"description": "For W&B Launch; emtoolkit does not read it."},
    "kind": {"description": "For W&B Launch; emtoolkit does not read it."},
    "controller": {"description": "For W&B's local controller; emtoolkit does not read it."},
}


def sweep_schema() -> dict[str, Any]:
    """The JSON schema of the file that `emtoolkit sweep` takes."""
    return {
        "$schema": DIALECT,
        "title": "emtoolkit sweep",
        "description": "A sweep file of W&B with the keys that emtoolkit supports.",
        "type": "object",
        "properties": _KEYS,
        # What merge keys refer to.
        "patternProperties": {r"^(x-|\.)": True},
        "required": ["method", "parameters"],
        "additionalProperties": False,
        "$defs": {"parameter": _PARAMETER, "nested": _NESTED},
    }
