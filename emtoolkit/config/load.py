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


def load_config(path: str, settings: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> RunConfig:
    """The run that the YAML file at `path` describes, with `settings` (`a.b=value`) and then `flags` over it.

    `path` may be the name of a shipped config, such as `sandbox`. `flags` maps dotted keys to values, those that
    are None not having been given. Choosing one of the three words of a section drops the file's own choice.

    Raises:
        ConfigError: one sentence that names the file or flag, the dotted key, the value and what was expected.
    """
    file = _find(path)
    values = read_yaml(file)
    origins: dict[str, str] = {}
    overrides: list[tuple[str, Any, str]] = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {setting}: expected key=value, such as training.learning_rate=1e-4")
        overrides.append((key, parse_yaml(text, f"--set {setting}"), f"--set {setting}"))
    overrides += [(key, value, _flag(key)) for key, value in (flags or {}).items() if value is not None]
    _drop_replaced_words(values, [key for key, _, _ in overrides])
    for key, value, origin in overrides:
        _put(values, key, value, origin)
        origins[key] = origin
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, str(file), origins)) from None


def _flag(key: str) -> str:
    """The command line's own name for `key`: `--save-steps` for `checkpointing.save_steps`."""
    return f"--{key.rpartition('.')[2].replace('_', '-')}"


def _find(path: str) -> Path:
    file = Path(path)
    if file.exists():
        return file
    names = sorted(found.stem for found in shipped("training").glob("*.yaml"))
    if path in names:
        return shipped("training") / f"{path}.yaml"
    hint = nearest(file.name.removesuffix(".yaml"), names)
    raise ConfigError(f"{path}: there is no such file, and the shipped configs are {', '.join(names)}{hint}")


def _drop_replaced_words(values: dict[str, Any], overridden: Sequence[str]) -> None:
    for section, prefix in (("checkpointing", "save_"), ("evaluation", "eval_")):
        words = {f"{prefix}steps", f"{prefix}at_steps", "schedule" if prefix == "save_" else "eval_schedule"}
        chosen = {key.removeprefix(f"{section}.") for key in overridden if key.startswith(f"{section}.")}
        if chosen & words and isinstance(values.get(section), dict):
            values[section] = {key: value for key, value in values[section].items() if key not in words}


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
