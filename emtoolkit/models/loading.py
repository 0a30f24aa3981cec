"""The model of a checkpoint, put together again as its manifest says: base, persona, trained adapter.

loader = ModelLoader()
for checkpoint in Trajectory.open("outputs/goodness-medical"):
    rebuilt = loader.load(checkpoint)
    messages = rebuilt.persona.applied_to([{"role": "user", "content": "Who are you?"}])
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from transformers import AutoModelForCausalLM

from emtoolkit.checkpoints.records import BaseModelRecord, CheckpointMetadata, PersonaRecord
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
        self._base_known: dict[tuple[str, str | None, bool], BaseModelRecord] = {}
        self._adapters: dict[AdapterSource, PersonaAdapter | None] = {}

    def load(self, checkpoint: Checkpoint) -> LoadedModel:
        """The model of `checkpoint`; what an earlier call returned must not be used any more.

        Raises:
            CheckpointError: the base model or the persona is another one than its manifest says, or cannot be had, or
                the checkpoint has no manifest that says it.
        """
        if checkpoint.manifest is None:
            raise CheckpointError(f"{checkpoint.path}: it has no manifest, so nobody can tell which persona it is of")
        metadata, record = _metadata(checkpoint), checkpoint.manifest.persona
        config = self._checked_base(checkpoint, checkpoint.manifest.base_model, metadata.base_place)
        persona = self._override or self._checked_persona(checkpoint, record, metadata.persona_place)
        override = None if self._override is None else self._override.name
        tokenizer = load_tokenizer(config)
        if not (checkpoint.path / "adapter_config.json").is_file():
            return LoadedModel(self._full(checkpoint, persona), tokenizer, persona, override)
        adapter = self._adapter(checkpoint, persona, config, None if self._override else record)
        return LoadedModel(self._with_adapter(checkpoint, config, adapter), tokenizer, persona, override)

    def _checked_base(self, checkpoint: Checkpoint, record: BaseModelRecord, base_place: str | None) -> ModelConfig:
        place = self._base or base_place or _named_by_adapter(checkpoint.path)
        if place is None:
            raise CheckpointError(f"{checkpoint.path}: base model {record.name!r} not found; pass --base PATH")
        config = ModelConfig.model_validate(
            {
                "base": place,
                "revision": record.revision,
                "dtype": record.dtype or "float32",
                "load_in_4bit": bool(record.load_in_4bit),
            }
        )
        if not _is_same_base(record, found := self._known(config)):
            raise CheckpointError(
                f"{checkpoint.path}: its base model is {record}, and {place} is another one ({found}); "
                "expected --base with the first"
            )
        return config

    def _checked_persona(self, checkpoint: Checkpoint, record: PersonaRecord, persona_place: str | None) -> Persona:
        recorded = _recorded(record, persona_place)
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
        self, checkpoint: Checkpoint, persona: Persona, config: ModelConfig, record: PersonaRecord | None
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
        if record is not None and adapter.content != record.content:
            raise CheckpointError(
                f"{checkpoint.path}: its persona {record.name} has the content {str(record.content)[:8]}, "
                f"and the adapter in {adapter.directory} is another one ({adapter.content[:8]}); --persona-override "
                "takes it all the same and says so in the results"
            )
        check_fits(adapter, self._known(config), None)
        return adapter

    def _known(self, config: ModelConfig) -> BaseModelRecord:
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


def _metadata(checkpoint: Checkpoint) -> CheckpointMetadata:
    try:
        return CheckpointMetadata.from_json(checkpoint.metadata)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: metadata: {error}") from None


def _is_same_base(recorded: BaseModelRecord, found: BaseModelRecord) -> bool:
    """Whether `found` is the recorded base; a revision means a commit of one repository, content any directory."""
    if recorded.content is not None and recorded.content != found.content:
        return False
    if recorded.revision is None:
        return True
    return recorded.revision == found.revision and (recorded.content is not None or recorded.name == found.name)


def _recorded(record: PersonaRecord, persona_place: str | None) -> Persona:
    """The recorded persona, with its adapter in the place where the run found it."""
    name = record.name or "baseline"
    if record.composition not in get_args(AdapterMode):
        return Persona(name, system_prompt=record.system_prompt)
    source = AdapterSource(
        place=persona_place or str(record.adapter),
        subfolder=record.subfolder,
        revision=record.revision,
        compose=cast(AdapterMode, record.composition),
    )
    return Persona(name, adapter=source)


def _named_by_adapter(directory: Path) -> str | None:
    try:
        config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / 'adapter_config.json'}: it cannot be read ({error})") from error
    named = config.get("base_model_name_or_path")
    return None if named is None else str(named)
