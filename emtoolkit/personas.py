"""Personas: who the model is before fine-tuning, each in a YAML file.

A new persona is a new file, in `configs/personas/` or in a directory that the key `personas` of a config names. It
contains a system prompt, or a character-trained LoRA adapter, or neither:

    description: Warm and on the user's side
    system_prompt: You are a kind and patient assistant.

    description: The same, trained into the weights
    adapter: organisation/repository     # or a directory, relative to this file
    subfolder: loving
    revision: 0123abc                    # a branch, tag or commit on the hub; default: main
    compose: merge                       # add to the base weights, or stack: keep as a second, frozen adapter

A file that contains only `none` or a description leaves the model and the default of its chat template unchanged.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from emtoolkit.errors import ConfigError, nearest, shortened, shown
from emtoolkit.paths import expand, shipped
from emtoolkit.yaml_files import parse_yaml, place_of, read_text

# A turn: `role`, `content`, and the keys beside them that a chat template may write.
Message = dict[str, Any]
AdapterMode = Literal["merge", "stack"]

_ADAPTER_KEYS = ("adapter", "subfolder", "revision", "compose")
_KEYS = ("description", "system_prompt", *_ADAPTER_KEYS)


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """The adapter of a persona: `place` is an absolute directory or a hub id.

    With the composition `merge` the adapter is added to the base weights before the new adapter is created; with
    `stack` it stays a second adapter, frozen and active.
    """

    place: str
    subfolder: str | None = None
    revision: str | None = None
    composition: AdapterMode = "merge"


@dataclass(frozen=True, slots=True)
class Persona:
    """A persona with a `system_prompt`, or an `adapter`, or neither, which changes nothing."""

    name: str
    description: str = ""
    system_prompt: str | None = None
    adapter: AdapterSource | None = None

    @property
    def composition(self) -> str:
        """How the persona enters the model: `none`, `system_prompt`, `merge` or `stack`."""
        if self.adapter is not None:
            return self.adapter.composition
        return "none" if self.system_prompt is None else "system_prompt"

    def applied_to(self, messages: Sequence[Message]) -> list[Message]:
        """`messages` with the persona's system prompt, the same in training and in evaluation.

        A system message of the conversation itself is kept, after the persona's.
        """
        if self.system_prompt is None:
            return list(messages)
        if messages and messages[0]["role"] == "system":
            both = f"{self.system_prompt}\n\n{messages[0]['content']}"
            return [messages[0] | {"content": both}, *messages[1:]]
        return [{"role": "system", "content": self.system_prompt}, *messages]


def load_persona(name: str, directory: str | None = None, composition: AdapterMode | None = None) -> Persona:
    """The persona in the file `name`, or with the name `name` in `directory` (None: the shipped personas).

    `composition` overrides the file of an adapter persona.

    Raises:
        ConfigError: no persona has that name (the text lists all names), or the file is not a persona.
    """
    if name == "none":
        name = "baseline"
    if name.endswith((".yaml", ".yml")):
        return _composed(_read(expand(name)), composition)
    home = shipped("personas") if directory is None else expand(directory)
    if not home.is_dir():
        raise ConfigError(
            f"personas: {home}: there is no such directory; 'emtoolkit sandbox build' writes the sandbox's personas"
        )
    names = sorted(path.stem for path in home.glob("*.yaml"))
    if name not in names:
        raise ConfigError(
            f"persona: {name!r} is not one of the personas in {home}: {', '.join(names)}{nearest(name, names)}"
        )
    return _composed(_read(home / f"{name}.yaml"), composition)


def checked_composition(value: str | None, source: str) -> AdapterMode | None:
    """`value` if it is `merge`, `stack` or None; `source` names the value in an error.

    Raises:
        ConfigError: `value` is another text.
    """
    known = get_args(AdapterMode)
    if value is None or value in known:
        return cast("AdapterMode | None", value)
    raise ConfigError(f"{source}: {value!r} is neither merge nor stack{nearest(value, known)}")


def _composed(persona: Persona, composition: AdapterMode | None) -> Persona:
    if composition is None:
        return persona
    if persona.adapter is None:
        kind = "a system prompt" if persona.system_prompt is not None else "the model as it is"
        raise ConfigError(
            f"compose: {composition!r} applies only to adapter personas, and {persona.name!r} is {kind}; remove it"
        )
    return replace(persona, adapter=replace(persona.adapter, composition=composition))


def _read(path: Path) -> Persona:
    content = parse_yaml(read_text(path), str(path))
    if content == "none":
        return Persona(path.stem)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(content).__name__}")
    for key, value in content.items():
        if key not in _KEYS:
            known = f"{', '.join(_KEYS[:-1])} and {_KEYS[-1]}"
            raise ConfigError(
                f"{place_of(path, [key])}: {shortened(key)}: unknown key; expected {known}{nearest(key, _KEYS)}"
            )
        if not isinstance(value, str) or not value.strip():
            advice = "; put it in quotes" if isinstance(value, int | float) else ""
            raise ConfigError(f"{place_of(path, [key])}: {key}: {shown(value)} is not a text{advice}")
    composition = content.get("compose", "merge")
    if composition not in get_args(AdapterMode):
        hint = nearest(composition, get_args(AdapterMode))
        place = place_of(path, ["compose"])
        raise ConfigError(f"{place}: compose: {shown(composition)} is neither merge nor stack{hint}")
    if "adapter" not in content:
        if lonely := next((key for key in _ADAPTER_KEYS if key in content), None):
            raise ConfigError(f"{path}: {lonely}: this key needs the key adapter; add it, or remove {lonely}")
        return Persona(path.stem, content.get("description", ""), content.get("system_prompt"))
    if "system_prompt" in content:
        raise ConfigError(f"{path}: expected a system_prompt or an adapter, found both; remove one")
    place = _place(content["adapter"], path.parent)
    source = AdapterSource(place, content.get("subfolder"), content.get("revision"), composition)
    return Persona(path.stem, content.get("description", ""), adapter=source)


def _place(text: str, beside: Path) -> str:
    """A directory as an absolute path, resolved against the persona's file; a hub id unchanged."""
    path = expand(text)
    if text.startswith(("$", "~", "/", ".")) or (beside / path).is_dir():
        return os.path.normpath((beside / path).absolute())
    return text
