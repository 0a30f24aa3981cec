"""Directories of their own for the runs of a sweep: what the output template does not say of a run's parameters.

Where a template such as `outputs/{persona}-s{seed}` leaves out a parameter that a sweep sets, the directory ends with
a short digest of the parameters that are left out.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emtoolkit.config.key_values import leaves
from emtoolkit.config.output_template import as_file_name, placeholders
from emtoolkit.config.sections import RunConfig
from emtoolkit.errors import ConfigError
from emtoolkit.yaml_files import read_yaml

# The placeholder that shows each option, and each key of the config; "" for what no directory has to show.
_SHOWN_BY = {
    "persona": "persona",
    "compose": "persona",
    "dataset": "dataset",
    "control": "dataset",
    "seed": "seed",
    "schedule": "schedule",
    "save_steps": "schedule",
    "custom_checkpoints": "schedule",
    "checkpointing.schedule": "schedule",
    "checkpointing.save_steps": "schedule",
    "checkpointing.save_at_steps": "schedule",
    **dict.fromkeys(("output_dir", "resume", "dry_run", "json", "reuse"), ""),
    **dict.fromkeys(("trajectory.reuse", "trajectory.store", "trajectory.also_save"), ""),
}


def is_option(name: str) -> bool:
    """Whether the parameter `name` is an option of `train` in its own right, and not a key of the config."""
    return "." not in name and _normal(name) in _SHOWN_BY


def left_out(template: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, by dotted key, whose values a directory of `template` does not show."""
    shown = placeholders(template)
    found = {}
    for name, value in _flat(parameters).items():
        placeholder = _SHOWN_BY.get(name, "set")
        if placeholder and (placeholder not in shown or _is_cut(name, value)):
            found[name] = value
    return found


def suffix(parameters: Mapping[str, Any]) -> str:
    """The end of a directory for these parameters: `-` and 8 hex digits, empty without parameters."""
    if not parameters:
        return ""
    # W&B treats 3 and 3.0 as one value.
    plain = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in _flat(parameters).items()}
    content = json.dumps(plain, sort_keys=True, default=str)
    return f"-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def under_agent(config: RunConfig, environment: Mapping[str, str]) -> RunConfig:
    """`config` with a directory of its own among the runs of W&B's agent; unchanged outside an agent.

    The agent writes the parameters of the run to the file `$WANDB_SWEEP_PARAM_PATH`.
    """
    path = environment.get("WANDB_SWEEP_PARAM_PATH")
    if not path or not environment.get("WANDB_SWEEP_ID"):
        return config
    try:
        content = read_yaml(Path(path))
    except ConfigError:
        # The agent's file is gone, for example when a launcher changed the working directory.
        return config
    parameters = {
        str(name): entry["value"] for name, entry in content.items() if isinstance(entry, dict) and "value" in entry
    }
    end = suffix(left_out(config.template, parameters))
    return config.model_copy(update={"output_dir": f"{config.template.rstrip('/')}{end}"}) if end else config


def with_keys(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """`config` in whose directory `{set}` is the keys in `overrides` that no other placeholder shows."""
    shown = placeholders(config.template) - {"set"}
    rest = {
        key: value
        for key, value in _flat(overrides).items()
        if (placeholder := _SHOWN_BY.get(key, "set")) and (placeholder not in shown or _is_cut(key, value))
    }
    text = ",".join(f"{key}={value}" for key, value in sorted(rest.items())) or "default"
    name = as_file_name(text)
    # Other characters become hyphens, so that two texts could have one name.
    name += "" if re.fullmatch(r"[\w.,=-]*", text) else suffix(rest)
    return config.with_set(name)


def _flat(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {_normal(key): value for name, inner in parameters.items() for key, value in leaves(name, inner)}


def _is_cut(name: str, value: Any) -> bool:
    """Whether the directory shows only the last part of `value`, a path."""
    return name in ("persona", "dataset") and Path(str(value)).name != str(value)


def _normal(name: str) -> str:
    return name.replace("-", "_")
