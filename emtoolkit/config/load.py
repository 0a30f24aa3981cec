"""`load_config`: a YAML file, `--set` values and flags become a `RunConfig`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from emtoolkit.config.key_values import leaves, values_of
from emtoolkit.config.messages import describe
from emtoolkit.config.sections import RunConfig
from emtoolkit.config.sweep_directories import with_keys
from emtoolkit.errors import ConfigError, nearest, shortened, shown
from emtoolkit.paths import shipped
from emtoolkit.yaml_files import parse_yaml, read_yaml

# By section, the keys of which the config may set one: an override of one replaces the others.
_ALTERNATIVES = {
    "checkpointing": {"save_steps", "save_at_steps", "schedule"},
    "evaluation": {"eval_steps", "eval_at_steps", "eval_schedule"},
}

# Parts of a dotted key before the last, far above any key's.
_DEEPEST = 20


@dataclass(frozen=True, slots=True)
class _Override:
    """A dotted key of the config with its value; `origin` is the flag or setting as the user typed it."""

    key: str
    value: Any
    origin: str


def load_config(
    path: str,
    settings: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    key_flags: Sequence[str] = (),
) -> RunConfig:
    """The run that the YAML file at `path` describes, with what `settings`, `flags` and `key_flags` replace.

    Args:
        path: a YAML file, or the name of a shipped config such as `sandbox`.
        settings: `key=value` with dotted keys and YAML values, such as `training.learning_rate=1e-4`.
        flags: dotted keys with values; a flag whose value is None was not given, and `"None"` means null.
        key_flags: `key=text` for options such as `--training.learning_rate=1e-4`. The key decides the type of a text.

    Raises:
        ConfigError: one sentence that names the file or flag, the dotted key, the value and what was expected; also
            where one key is given two values.
    """
    file = _find(path)
    # A key such as x-defaults holds what anchors repeat, as in other tools' files.
    values = {key: value for key, value in read_yaml(file).items() if not key.startswith("x-")}
    settings_given = [_parse_setting(setting) for setting in settings]
    options = []
    typed = [(name, value, _flag(name)) for name, value in (flags or {}).items() if value is not None]
    typed += [(name, text, f"--{name}") for name, _, text in (flag.partition("=") for flag in key_flags)]
    for name, value, flag in typed:
        options += [_Override(key, found, flag) for key, found in values_of(name, value, flag)]
    _check_one_value_each(settings_given, options)
    overrides = settings_given + options
    _drop_alternatives(values, [override.key for override in overrides if override.value is not None])
    for override in overrides:
        _put(values, override.key, override.value, override.origin)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        origins = {override.key: override.origin for override in overrides}
        raise ConfigError(describe(error, file, origins)) from None
    return with_keys(config, {override.key: override.value for override in overrides})


def _parse_setting(setting: str) -> _Override:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {shortened(setting)}: expected key=value, such as training.learning_rate=1e-4")
    origin = f"--set {shortened(setting)}"
    return _Override(key, parse_yaml(text, origin), origin)


def _check_one_value_each(settings: Sequence[_Override], options: Sequence[_Override]) -> None:
    """Refuse an option that gives a key another value than `settings` or an option before; of two settings the last
    wins, as `--set datasets={...} --set datasets.bad.rows=5`.
    """
    seen = [(key, value, each.origin) for each in settings for key, value in leaves(each.key, each.value)]
    for override in options:
        here = list(leaves(override.key, override.value))
        for key, value in here:
            for seen_key, before, origin in seen:
                same_key = key == seen_key
                if same_key and value == before:
                    continue
                if same_key or key.startswith(f"{seen_key}.") or seen_key.startswith(f"{key}."):
                    raise ConfigError(
                        f"{override.origin}: {key} is {shown(value)} here, and {origin} sets {seen_key} to "
                        f"{shown(before)}; give one of the two"
                    )
        seen += [(key, value, override.origin) for key, value in here]


def _flag(key: str) -> str:
    """The name of `key` on the command line: `--save-steps` for `checkpointing.save_steps`."""
    return f"--{key.rpartition('.')[2].replace('_', '-')}"


def _find(path: str) -> Path:
    file = Path(path)
    names = sorted(found.stem for found in shipped("training").glob("*.yaml"))
    # A directory may have the name of a shipped config.
    # A link to itself does not exist; reading it says what is wrong.
    if (file.exists() or file.is_symlink()) and not (file.is_dir() and path in names):
        return file
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
    if len(sections) > _DEEPEST:
        raise ConfigError(f"{origin}: the key has {len(sections) + 1:,} parts, and no key of a config has so many")
    inner: Any = values
    for name in sections:
        if not isinstance(inner.get(name), dict):
            inner[name] = {}
        inner = inner[name]
    if not last or not all(sections):
        raise ConfigError(f"{origin}: {key!r} is not a dotted key such as training.learning_rate")
    inner[last] = value
