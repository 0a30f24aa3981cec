"""The model of a checkpoint, composed as its manifest records: base model, persona, trained adapter.

loader = ModelLoader()
for checkpoint in Trajectory.open("outputs/goodness-medical"):
    loaded = loader.load(checkpoint)
    messages = loaded.persona.applied_to([{"role": "user", "content": "Who are you?"}])
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

from emtoolkit.checkpoints.adapter_loading import ChangedBaseError
from emtoolkit.checkpoints.declared import DeclaredManifest
from emtoolkit.checkpoints.layout import ADAPTER_CONFIG
from emtoolkit.checkpoints.manifest import Manifest
from emtoolkit.checkpoints.records import BaseModelRecord, CheckpointMetadata, PersonaRecord
from emtoolkit.config.sections import ModelConfig
from emtoolkit.errors import CheckpointError, ConfigError, first_line, renamed
from emtoolkit.models import persona_adapters
from emtoolkit.models.base import device_for, load_base, load_tokenizer
from emtoolkit.models.base_record import base_identity
from emtoolkit.models.causal_lm import load_causal_lm
from emtoolkit.models.declared_base import declared_base, named_by_adapter
from emtoolkit.models.persona_adapters import PersonaAdapter, check_fits, locate
from emtoolkit.models.weight_swap import SwappableWeights
from emtoolkit.personas import AdapterMode, AdapterSource, Persona, load_persona
from emtoolkit.trajectory import Checkpoint


@dataclass(slots=True, eq=False)
class LoadedModel:
    """The model of a checkpoint, for inference. It is valid until its loader loads the next checkpoint."""

    tokenizer: Any
    """The tokenizer of the base model, the same object for all checkpoints that a loader loads."""
    persona: Persona
    """The persona; messages go through `persona.applied_to` before they are rendered."""
    persona_override: str | None
    """The name of a persona that replaces the checkpoint's own; every result has to state the name. Else None."""
    config: ModelConfig
    """The base model and how it is loaded."""
    _model: Any = field(repr=False)
    persona_adapter: PersonaAdapter | None = None
    """The adapter of the persona that is in the model, None without one."""
    base_model: BaseModelRecord | None = None
    """The record of the base model; None if the checkpoint is a whole model with a tokenizer of its own."""

    @property
    def model(self) -> Any:
        """The model, in evaluation mode.

        Raises:
            RuntimeError: the loader has loaded another checkpoint since, into the same base model.
        """
        if self._model is None:
            raise RuntimeError(
                "this LoadedModel is no longer valid: its ModelLoader has loaded another checkpoint into the same base "
                "model; load the checkpoint again, or use a loader for each model that you keep"
            )
        return self._model


class ModelLoader:
    """Loads checkpoints one after the other; a base model with its persona is loaded once for all that share it.

    Args:
        base: the base model, a directory or a hub id; by default the place where the run found it.
        persona: the persona, a name or a file; by default the manifest's, its adapter where the run found it.
        personas: the directory in which persona names are looked up; by default the shipped personas.
        composition: how the adapter of `persona` or `persona_override` is added; by default as the persona's file says.
        persona_override: a name or a file of a persona that replaces the checkpoint's own.
        trust_remote_code: run the Python code of base models that were trained with `model.trust_remote_code`.

    Raises:
        ConfigError: `persona` and `persona_override` are both given, or a persona cannot be read.
    """

    def __init__(
        self,
        *,
        base: str | None = None,
        persona: str | None = None,
        personas: str | None = None,
        composition: AdapterMode | None = None,
        persona_override: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if persona is not None and persona_override is not None:
            raise ConfigError(
                "--persona and --persona-override: --persona locates the checkpoint's own persona, and "
                "--persona-override replaces it; give only one"
            )
        self._base = base
        self._trust_remote_code = trust_remote_code
        self._persona = None if persona is None else load_persona(persona, personas, composition)
        self._override = None if persona_override is None else load_persona(persona_override, personas, composition)
        self._loaded: LoadedModel | None = None
        self._base_with_persona: Any = None
        self._base_key: Any = None
        # The weights of the last loaded checkpoint in the model, where the next one's can take their place.
        self._weights: SwappableWeights | None = None
        self._weights_key: Any = None
        # All checkpoints of a trajectory share one base model, and hashing a large one takes a minute.
        self._base_records: dict[tuple[str, str | None, bool, bool], BaseModelRecord] = {}
        self._tokenizers: dict[tuple[str, str | None], Any] = {}
        self._adapters: dict[AdapterSource, PersonaAdapter | None] = {}

    @property
    def override(self) -> Persona | None:
        """The persona that replaces the checkpoints' own, None if none does."""
        return self._override

    def load(self, checkpoint: Checkpoint) -> LoadedModel:
        """The model of `checkpoint`. The `LoadedModel` of an earlier call is not valid afterwards.

        Raises:
            CheckpointError: the checkpoint has no manifest, or the base model or the persona is missing or differs
                from the manifest.
        """
        described = self.describe(checkpoint)
        with self._naming_base(checkpoint):
            self._invalidate()
            if (checkpoint.path / ADAPTER_CONFIG).is_file():
                model = self._with_adapter(checkpoint, described.config, described.persona_adapter)
            else:
                model = self._full(checkpoint, described.config)
        self._loaded = replace(described, _model=model)
        return self._loaded

    def describe(self, checkpoint: Checkpoint) -> LoadedModel:
        """All of `load` but the weights: the result has no `model`, and earlier results stay valid.

        Raises:
            CheckpointError: as in `load`.
        """
        if checkpoint.manifest is None:
            raise CheckpointError(f"{checkpoint.path}: has no manifest.json, so its persona is not known")
        with self._naming_base(checkpoint):
            return self._described(checkpoint, checkpoint.manifest)

    def _naming_base(self, checkpoint: Checkpoint) -> AbstractContextManager[None]:
        # The config key of a training, which the user of a checkpoint does not see.
        return renamed("model.base", "--base" if self._base else f"{checkpoint.path}: its base model")

    def _described(self, checkpoint: Checkpoint, manifest: Manifest) -> LoadedModel:
        metadata, record = _metadata(checkpoint), manifest.persona
        if isinstance(manifest, DeclaredManifest):
            config = declared_base(checkpoint.path, manifest, self._base)
        else:
            config = self._checked_base(checkpoint, manifest.base_model, metadata.base_place)
        persona = self._override or self._checked_persona(checkpoint, record, metadata.persona_place)
        tokenizer = self._tokenizer(config)
        adapter = None
        if (checkpoint.path / ADAPTER_CONFIG).is_file():
            adapter = self._checked_adapter(checkpoint, persona, config, None if self._override else record)
        else:
            self._check_full(checkpoint, persona)
        override = None if self._override is None else self._override.name
        own = config.base == str(checkpoint.path)
        return LoadedModel(
            tokenizer, persona, override, config, None, adapter, None if own else self._base_record(config)
        )

    def _invalidate(self) -> None:
        if self._loaded is not None:
            self._loaded._model = None

    def _checked_base(self, checkpoint: Checkpoint, record: BaseModelRecord, base_place: str | None) -> ModelConfig:
        place = self._base or base_place or named_by_adapter(checkpoint.path)
        if place is None:
            raise CheckpointError(f"{checkpoint.path}: base model {record.name!r} not found; pass --base PATH")
        if record.trust_remote_code and not self._trust_remote_code:
            raise CheckpointError(
                f"{checkpoint.path}: its base model {record} runs Python code of its own; read the code in {place}, "
                "and pass trust_remote_code=True to ModelLoader to run it"
            )
        config = ModelConfig.model_validate(
            {
                "base": place,
                "revision": record.revision,
                "dtype": record.dtype or "float32",
                "load_in_4bit": bool(record.load_in_4bit),
                "trust_remote_code": bool(record.trust_remote_code),
            }
        )
        if not _is_same_base(record, found := self._base_record(config)):
            raise CheckpointError(
                f"{checkpoint.path}: its base model is {record}, and {place} is another one ({found}); "
                "pass --base with the path of the first"
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
                f"({given.composition}) is another; --persona-override {name} uses it anyway and records that in the "
                "results"
            )
        return given

    def _checked_adapter(
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
                f"{checkpoint.path}: its persona {persona.name} ({persona.composition}) cannot be loaded ({error}); "
                "pass --persona FILE with its present place"
            ) from error
        if adapter is None:
            return None
        if record is not None and adapter.content != record.content:
            raise CheckpointError(
                f"{checkpoint.path}: its persona {record.name} has the content {str(record.content)[:8]}, "
                f"and the adapter in {adapter.directory} is another one ({adapter.content[:8]}); --persona-override "
                "uses it anyway and records that in the results"
            )
        flag = "--persona" if self._persona else "--persona-override"
        with renamed("persona", flag if self._persona or self._override else f"{checkpoint.path}: its persona"):
            check_fits(adapter, self._base_record(config), None)
        return adapter

    def _tokenizer(self, config: ModelConfig) -> Any:
        # That of a large vocabulary takes longer to load than an adapter.
        key = (config.base, config.revision)
        if key not in self._tokenizers:
            self._tokenizers[key] = load_tokenizer(config)
        return self._tokenizers[key]

    def _base_record(self, config: ModelConfig) -> BaseModelRecord:
        key = (config.base, config.revision, config.load_in_4bit, config.trust_remote_code)
        if key not in self._base_records:
            self._base_records[key] = base_identity(config)
        return self._base_records[key]

    def _with_adapter(self, checkpoint: Checkpoint, config: ModelConfig, adapter: PersonaAdapter | None) -> Any:
        merged = adapter if adapter is not None and adapter.source.composition == "merge" else None
        key = (config, None if merged is None else merged.content)
        stacked = adapter if adapter is not None and adapter.source.composition == "stack" else None
        kind = (key, None if stacked is None else stacked.content)
        if self._swapped(kind, checkpoint):
            return self._base_with_persona.eval()
        if self._base_key != key:
            self._load_base(key, config, merged)
        try:
            model = checkpoint.load_adapter(self._base_with_persona, persona_is_in=True)
        except ChangedBaseError:
            self._load_base(key, config, merged)
            model = checkpoint.load_adapter(self._base_with_persona, persona_is_in=True)
        self._base_with_persona = model
        if stacked is not None:
            persona_adapters.stack(model, stacked)
        model.eval()
        self._weights = SwappableWeights.of_adapter(model, checkpoint.path, persona_adapters.TRAINED)
        self._weights_key = kind
        return model

    def _swapped(self, kind: Any, checkpoint: Checkpoint) -> bool:
        """Whether the weights of `checkpoint` are now in the model of an earlier call, which was of the same kind."""
        swapped = self._weights is not None and self._weights_key == kind and self._weights.replace(checkpoint.path)
        if not swapped:
            if self._weights is not None and not self._weights.model_is_as_loaded():
                # Somebody has cast or merged the model, so that another adapter does not make it the next checkpoint.
                self._base_with_persona = self._base_key = None
            self._weights = self._weights_key = None
        return swapped

    def _load_base(self, key: Any, config: ModelConfig, merged: PersonaAdapter | None) -> None:
        # Freed before the next one is loaded: two may not fit into memory.
        self._base_with_persona = self._base_key = None
        base = load_base(config)
        self._base_with_persona = base if merged is None else persona_adapters.merge(base, merged)
        self._base_key = key

    def _check_full(self, checkpoint: Checkpoint, persona: Persona) -> None:
        if self._override is not None and persona.adapter is not None:
            raise CheckpointError(
                f"{checkpoint.path}: holds all weights, its own persona included, so the adapter persona "
                f"{persona.name} cannot replace it"
            )

    def _full(self, checkpoint: Checkpoint, config: ModelConfig) -> Any:
        if self._swapped("full", checkpoint):
            return self._base_with_persona.eval()
        # Freed before the next one is loaded: two may not fit into memory.
        self._base_with_persona = self._base_key = None
        device = device_for(config)
        # On a CPU a map would take accelerate's way of loading.
        place: dict[str, Any] = {} if device.type == "cpu" else {"device_map": {"": device}}
        try:
            model: Any = load_causal_lm(checkpoint.path, trust_remote_code=False, **place)
            self._weights, self._weights_key = SwappableWeights.of_model(model, checkpoint.path), "full"
            self._base_with_persona = model if self._weights is not None else None
            return model.eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{checkpoint.path}: cannot be loaded ({first_line(error)})") from error


def _metadata(checkpoint: Checkpoint) -> CheckpointMetadata:
    try:
        return CheckpointMetadata.from_json(checkpoint.metadata)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: metadata: {error}") from None


def _is_same_base(recorded: BaseModelRecord, found: BaseModelRecord) -> bool:
    """Whether `found` is the recorded base: the same content in any directory, or the same commit of a repository."""
    if recorded.content is not None and (recorded.content, recorded.code) != (found.content, found.code):
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
        composition=cast(AdapterMode, record.composition),
    )
    return Persona(name, adapter=source)
