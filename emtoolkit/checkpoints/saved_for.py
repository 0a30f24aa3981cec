"""Why a step was saved: the schedule has it, somebody asked for it, or an interruption alone did."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

# If a step was saved for several reasons, the first of them counts.
SavedFor = Literal["schedule", "asked", "interruption"]


def with_reason(metadata: Mapping[str, Any], reason: SavedFor) -> dict[str, Any]:
    """`metadata` of a checkpoint that is saved for this reason; a scheduled step has no key for it."""
    values = {key: value for key, value in metadata.items() if key != "saved_for"}
    return values if reason == "schedule" else values | {"saved_for": reason}


def reasons_of(events: Sequence[Any]) -> dict[int, SavedFor]:
    """Why each step of these events of `publications.jsonl` was saved."""
    reasons = defaultdict[int, list[Any]](list)
    for event in events:
        match event:
            case {"event": "saved", "step": int(step), "metadata": dict(values), "run": _}:
                reasons[step].append(values.get("saved_for", "schedule"))
            case {"event": "saved for", "step": int(step), "saved_for": reason}:
                reasons[step].append(reason)
            case {"event": "asked", "step": int(step)}:
                reasons[step].append("asked")
    known = get_args(SavedFor)
    return {step: next((each for each in known if each in given), "schedule") for step, given in reasons.items()}
