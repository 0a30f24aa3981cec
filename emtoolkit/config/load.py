"""`load_config`: a YAML file, `--set` values and flags become a `RunConfig`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from emtoolkit.config.messages import describe
from emtoolkit.config.sections import RunConfig
from emtoolkit.errors import ConfigError, nearest
from emtoolkit.paths import shipped
from emtoolkit.yaml_files import parse_yaml, read_yaml

# By section, the keys of which the config may set one: an override of one replaces the others.
_ALTERNATIVES = {
    "checkpointing": {"save_steps", "save_at_steps", "schedule"},
    "evaluation": {"eval_steps", "eval_at_steps", "eval_schedule"},
}


def load_config(path: str, settings: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> RunConfig:
    """The run that the YAML file at `path` describes; `settings` override the file, and `flags` override both.

    Args:
        path: a YAML file, or the name of a shipped config such as `sandbox`.
        settings: `key=value` with dotted keys and YAML values, such as `training.learning_rate=1e-4`.
        flags: dotted keys with values; a flag whose value is None was not given.

    Raises:
        ConfigError: one sentence that names the file or flag, the dotted key, the value and what was expected.
    """
    file = _find(path)
    values = read_yaml(file)
    overrides = [_parse_setting(setting) for setting in settings]
    overrides += [(key, value, _flag(key)) for key, value in (flags or {}).items() if value is not None]
    _drop_alternatives(values, [key for key, _, _ in overrides])
    for key, value, origin in overrides:
        _put(values, key, value, origin)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        origins = {key: origin for key, _, origin in overrides}
        raise ConfigError(describe(error, str(file), origins)) from None


def _parse_setting(setting: str) -> tuple[str, Any, str]:
    """The dotted key, the value, and the name of the setting in an error."""
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {setting}: expected key=value, such as training.learning_rate=1e-4")
    return key, parse_yaml(text, f"--set {setting}"), f"--set {setting}"


def _flag(key: str) -> str:
    """The name of `key` on the command line: `--save-steps` for `checkpointing.save_steps`."""
    return f"--{key.rpartition('.')[2].replace('_', '-')}"


def _find(path: str) -> Path:
    file = Path(path)
    if file.exists():
        return file
    names = sorted(found.stem for found in shipped("training").glob("*.yaml"))
    if path in names:
        return shipped("training") / f"{path}.yaml"
    hint = nearest(file.name.removesuffix(".yaml"), names)
    raise ConfigError(f"{path}: no such file; the shipped configs are {', '.join(names)}{hint}")


def _drop_alternatives(values: dict[str, Any], overridden: Sequence[str]) -> None:
    for section, keys in _ALTERNATIVES.items():
        chosen = {key.removeprefix(f"{section}.") for key in overridden if key.startswith(f"{section}.")}
        if chosen & keys and isinstance(values.get(section), dict):
            values[section] = {key: value for key, value in values[section].items() if key not in keys}


def _put(values: dict[str, Any], key: str, value: Any, origin: str) -> None:
    *sections, last = key.split(".")
    inner: Any = values
    for name in sections:
        if not isinstance(inner.get(name), dict):
            inner[name] = {}
        inner = inner[name]
    if not last or not all(sections):
        raise ConfigError(f"{origin}: {key!r} is not a dotted key such as training.learning_rate")
    inner[last] = value
