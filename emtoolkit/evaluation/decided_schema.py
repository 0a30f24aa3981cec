"""The JSON schema of `analysis.yaml`."""

from typing import Any, get_args

from emtoolkit.config.schema import DIALECT
from emtoolkit.evaluation.decided import CurveKind, Inference

_NAMES = {"type": "array", "minItems": 1, "items": {"type": "string"}}
_KEYS: dict[str, Any] = {
    "metric": {"type": "string", "description": "Definition of the EM rate, changed, or the metric of a measure."},
    "threshold": {"type": "number", "description": "Value that the curve crosses; 0.10 is ten points."},
    "curve": {"enum": list(get_args(CurveKind)), "description": "The rise since step 0 (the default), or the level."},
    "falls": {"type": "boolean", "description": "Whether the event is a fall; the default is false."},
    "inference": {
        "enum": list(get_args(Inference)),
        "description": "The limits that decide; the default is `new_questions`.",
    },
    "questions": _NAMES | {"description": "The ids of the questions; by default all that are asked."},
    "schedules": _NAMES | {"description": "The schedules that `emtoolkit compare` compares."},
}


def analysis_schema() -> dict[str, Any]:
    """The JSON schema of the file that `--analysis` takes."""
    return {
        "$schema": DIALECT,
        "title": "emtoolkit analysis",
        "description": "An analysis that is decided before the evaluation.",
        "type": "object",
        "properties": _KEYS,
        "required": ["metric", "threshold"],
        "additionalProperties": False,
    }
