"""Who the model is before fine-tuning: a persona is a named value in a YAML file.

A new persona is a new file, in `configs/personas/` or in a directory of your own that `personas:` names:

    description: Warm and on the user's side
    system_prompt: You are a kind and patient assistant.

Without `system_prompt` the conversation is left as it is, and the chat template's own default applies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emtoolkit.errors import ConfigError, nearest
from emtoolkit.locations import expand, shipped
from emtoolkit.yaml_files import read_yaml

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Persona:
    """A persona. `system_prompt` None leaves the model as it is."""

    name: str
    description: str = ""
    system_prompt: str | None = None

    def applied_to(self, messages: Sequence[Message]) -> list[Message]:
        """`messages` as this persona hears them, in training as in evaluation.

        A conversation that brings a system message of its own keeps it, behind the persona's.
        """
        if self.system_prompt is None:
            return list(messages)
        if messages and messages[0]["role"] == "system":
            both = f"{self.system_prompt}\n\n{messages[0]['content']}"
            return [{"role": "system", "content": both}, *messages[1:]]
        return [{"role": "system", "content": self.system_prompt}, *messages]

    def as_manifest(self) -> dict[str, Any]:
        """What a manifest says of the persona: enough to be it again."""
        composition = "none" if self.system_prompt is None else "system_prompt"
        return {"name": self.name, "composition": composition, "system_prompt": self.system_prompt}


def load_persona(name: str, directory: str | None = None) -> Persona:
    """The persona called `name` in `directory` (None: the shipped ones), or the one in the file `name`.

    Raises:
        ConfigError: there is none of that name (the sentence lists those there are), or its file is not a persona.
    """
    if name.endswith((".yaml", ".yml")):
        return _read(expand(name))
    home = shipped("personas") if directory is None else expand(directory)
    if not home.is_dir():
        raise ConfigError(
            f"personas: {home}: there is no such directory; the sandbox's files are made by 'emtoolkit sandbox build'"
        )
    names = sorted(path.stem for path in home.glob("*.yaml"))
    if name not in names:
        raise ConfigError(
            f"persona: {name!r} is not one of the personas in {home}: {', '.join(names)}{nearest(name, names)}"
        )
    return _read(home / f"{name}.yaml")


def _read(path: Path) -> Persona:
    content = read_yaml(path)
    known = ("description", "system_prompt")
    for key, value in content.items():
        if key not in known:
            raise ConfigError(f"{path}: {key}: unknown key; expected {' and '.join(known)}{nearest(str(key), known)}")
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{path}: {key}: {value!r} is not a text")
    return Persona(path.stem, content.get("description", ""), content.get("system_prompt"))
