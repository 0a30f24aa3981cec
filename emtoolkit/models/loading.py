"""The model of a checkpoint, put together again as its manifest says: base, persona, trained adapter.

loader = ModelLoader()
for checkpoint in Trajectory.open("outputs/goodness-medical"):
    rebuilt = loader.load(checkpoint)
    messages = rebuilt.persona.applied_to([{"role": "user", "content": "Who are you?"}])
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from emtoolkit.config.sections import ModelConfig
from emtoolkit.errors import CheckpointError, ConfigError, first_line
from emtoolkit.models import persona_adapters
from emtoolkit.models.base import base_identity, load_base, load_tokenizer
from emtoolkit.models.persona_adapters import PersonaAdapter, check_fits, locate
from emtoolkit.personas import AdapterMode, AdapterSource, Persona, load_persona
from emtoolkit.trajectory import Checkpoint


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model for inference, and the persona that its messages go through.

    `persona_override` is the name of a persona that was asked for in the place of the checkpoint's own, else None;
    every result made with this model has to say it.
    """

    model: Any
    tokenizer: Any
    persona: Persona
    persona_override: str | None


class ModelLoader:
    """Loads checkpoints one after the other; a base model with its persona is loaded once for all that share it.

    Args:
        base: the base model, a directory or a hub id; by default where the run found it.
        persona: the persona, a name or a file; by default what the manifest says, its adapter where the run found it.
        personas: the directory of persona files that names are looked up in; by default the shipped ones.
        compose: how the adapter of the persona that is named here is put in; by default as its file says.
        persona_override: a persona in the place of the checkpoint's own, a name or a file.
    """

    def __init__(
        self,
        *,
        base: str | None = None,
        persona: str | None = None,
        personas: str | None = None,
        compose: AdapterMode | None = None,
        persona_override: str | None = None,
    ) -> None:
        if persona is not None and persona_override is not None:
            raise ConfigError(
                "--persona and --persona-override: the one is the checkpoint's own persona, the other "
                "another in its place, so give only one"
            )
        self._base = base
        self._persona = None if persona is None else load_persona(persona, personas, compose)
        self._override = None if persona_override is None else load_persona(persona_override, personas, compose)
        self._loaded: Any = None
        self._loaded_key: Any = None
        # Hashing a large base model takes a minute, and all checkpoints of a trajectory share one.
        self._base_known: dict[tuple[str, str | None, bool], Mapping[str, Any]] = {}
        self._adapters: dict[AdapterSource, PersonaAdapter | None] = {}

    def load(self, checkpoint: Checkpoint) -> LoadedModel:
        """The model of `checkpoint`; what an earlier call returned must not be used any more.

        Raises:
            CheckpointError: the base model or the persona is another one than its manifest says, or cannot be had, or
                the checkpoint has no manifest that says it.
        """
        if checkpoint.manifest is None:
            raise CheckpointError(f"{checkpoint.path}: it has no manifest, so nobody can tell which persona it is of")
        said = checkpoint.manifest.persona
        config = self._checked_base(checkpoint, checkpoint.manifest.base_model)
        persona = self._override or self._checked_persona(checkpoint, said)
        override = None if self._override is None else self._override.name
        tokenizer = load_tokenizer(config)
        if not (checkpoint.path / "adapter_config.json").is_file():
            return LoadedModel(self._full(checkpoint, persona), tokenizer, persona, override)
        adapter = self._adapter(checkpoint, persona, config, None if self._override else said)
        return LoadedModel(self._with_adapter(checkpoint, config, adapter), tokenizer, persona, override)

    def _checked_base(self, checkpoint: Checkpoint, said: Mapping[str, Any]) -> ModelConfig:
        place = self._base or checkpoint.metadata.get("base_place") or _named_by_adapter(checkpoint.path)
        if place is None:
            raise CheckpointError(
                f"{checkpoint.path}: where its base model ({said.get('name')}) is must be said: --base"
            )
        config = ModelConfig(
            base=str(place),
            revision=said.get("revision"),
            dtype=said.get("dtype", "float32"),
            load_in_4bit=bool(said.get("load_in_4bit")),
        )
        found = self._known(config)
        differs = [key for key in ("content", "revision") if said.get(key) is not None and said[key] != found.get(key)]
        if "content" not in said and said.get("revision") is not None and said["name"] != found["name"]:
            differs.append("name")
        if differs:
            raise CheckpointError(
                f"{checkpoint.path}: its base model is {_known_as(said)}, and {place} is another one "
                f"({_known_as(found)}); expected --base with the first"
            )
        return config

    def _checked_persona(self, checkpoint: Checkpoint, said: Mapping[str, Any]) -> Persona:
        recorded = _recorded(checkpoint, said)
        if self._persona is None:
            return recorded
        given, name = self._persona, self._persona.name
        same = given.composition == recorded.composition and given.system_prompt == recorded.system_prompt
        if not same:
            raise CheckpointError(
                f"{checkpoint.path}: its persona is {recorded.name} ({recorded.composition}), and {name} "
                f"({given.composition}) is another; --persona-override {name} takes it all the same and says so in "
                "the results"
            )
        return given

    def _adapter(
        self, checkpoint: Checkpoint, persona: Persona, config: ModelConfig, said: Mapping[str, Any] | None
    ) -> PersonaAdapter | None:
        if persona.adapter is None:
            return None
        try:
            if persona.adapter not in self._adapters:
                self._adapters[persona.adapter] = locate(persona.adapter, download=True)
            adapter = self._adapters[persona.adapter]
        except ConfigError as error:
            raise CheckpointError(
                f"{checkpoint.path}: its persona {persona.name} ({persona.composition}) cannot be had ({error}); "
                "--persona FILE says where it is now"
            ) from error
        if adapter is None:
            return None
        if said is not None and adapter.content != said.get("content"):
            raise CheckpointError(
                f"{checkpoint.path}: its persona {said.get('name')} has the content {str(said.get('content'))[:8]}, "
                f"and the adapter in {adapter.directory} is another one ({adapter.content[:8]}); --persona-override "
                "takes it all the same and says so in the results"
            )
        check_fits(adapter, self._known(config), None)
        return adapter

    def _known(self, config: ModelConfig) -> Mapping[str, Any]:
        key = (config.base, config.revision, config.load_in_4bit)
        if key not in self._base_known:
            self._base_known[key] = base_identity(config)
        return self._base_known[key]

    def _with_adapter(self, checkpoint: Checkpoint, config: ModelConfig, adapter: PersonaAdapter | None) -> Any:
        merged = adapter if adapter is not None and adapter.source.compose == "merge" else None
        key = (config, None if merged is None else merged.content)
        if self._loaded_key != key:
            self._loaded = None  # before the next one: two may not fit into memory
            base = load_base(config)
            self._loaded = base if merged is None else persona_adapters.merge(base, merged)
            self._loaded_key = key
        model = self._loaded = checkpoint.load_adapter(self._loaded, persona_is_in=True)
        if adapter is not None and adapter.source.compose == "stack":
            persona_adapters.stack(model, adapter)
        model.eval()
        return model

    def _full(self, checkpoint: Checkpoint, persona: Persona) -> Any:
        if self._override is not None and persona.adapter is not None:
            raise CheckpointError(
                f"{checkpoint.path}: it holds all weights, its own persona among them, so {persona.name}, which is an "
                "adapter, cannot take its place"
            )
        self._loaded = self._loaded_key = None
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(checkpoint.path)
            return model.eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{checkpoint.path}: it cannot be loaded ({first_line(error)})") from error


def _recorded(checkpoint: Checkpoint, said: Mapping[str, Any]) -> Persona:
    """The persona that the manifest tells of, its adapter where the run found it."""
    name = str(said.get("name", "baseline"))
    composition = said.get("composition", "system_prompt" if said.get("system_prompt") else "none")
    if composition not in ("merge", "stack"):
        return Persona(name, system_prompt=said.get("system_prompt"))
    place = str(checkpoint.metadata.get("persona_place") or said["adapter"])
    return Persona(name, adapter=AdapterSource(place, said.get("subfolder"), said.get("revision"), composition))


def _named_by_adapter(directory: Path) -> str | None:
    try:
        config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / 'adapter_config.json'}: it cannot be read ({error})") from error
    named = config.get("base_model_name_or_path")
    return None if named is None else str(named)


def _known_as(base: Mapping[str, Any]) -> str:
    known = base.get("content") or base.get("revision")
    return f"{base.get('name')} {str(known)[:8]}" if known else str(base.get("name"))
