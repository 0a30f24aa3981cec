"""The identity of an answer: digests of the model and of the sampling that made it."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emtoolkit.checkpoints.declared import DeclaredManifest
from emtoolkit.checkpoints.layout import ADAPTER_CONFIG
from emtoolkit.checkpoints.manifest import Manifest
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.json_files import object_in, read_json
from emtoolkit.models.persona_record import persona_record
from emtoolkit.storage.digests import canonical_json
from emtoolkit.trajectory import Checkpoint

if TYPE_CHECKING:
    # Its libraries take seconds, which the readers of results need not wait for.
    from emtoolkit.models.loading import LoadedModel

# Keys of an adapter's config that do not change its logits: where its base was, and how it was trained.
_NOT_DECIDING = {
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "peft_version",
    "auto_mapping",
}


def digest_of(value: Any) -> str:
    """SHA-256 in hex of `value` as canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def adapter_settings(directory: Path) -> dict[str, Any] | None:
    """The settings in the adapter's config in `directory` that decide the logits; None without an adapter.

    Raises:
        CheckpointError: the config cannot be read.
    """
    path = directory / ADAPTER_CONFIG
    try:
        config = object_in(read_json(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    return {
        key: sorted(value) if isinstance(value, list) and all(isinstance(each, str) for each in value) else value
        for key, value in config.items()
        if key not in _NOT_DECIDING
    }


def model_digest(directory: Path, manifest: Manifest, persona: Mapping[str, Any]) -> str:
    """The digest of the model that a checkpoint makes: weights, adapter settings, base model and `persona`.

    The base's name and place are left out where its content is known, so that a copy elsewhere is the same model.
    """
    base = manifest.base_model.to_json()
    if base.get("content"):
        base.pop("name", None)
    weights = {
        name: digest.sha256
        for name, digest in manifest.files.items()
        if name.endswith((".safetensors", ".safetensors.index.json"))
    }
    return digest_of(
        {"weights": weights, "adapter": adapter_settings(directory), "base_model": base, "persona": dict(persona)}
    )


def checkpoint_digest(checkpoint: Checkpoint, loaded: "LoadedModel") -> str:
    """The digest of the model of `checkpoint`; `loaded` is any checkpoint of the same loader.

    Raises:
        CheckpointError: the checkpoint has no manifest, or its adapter's config cannot be read.
    """
    if checkpoint.manifest is None:
        raise CheckpointError(f"{checkpoint.path}: has no manifest.json, so its persona is not known")
    # A persona that replaces the checkpoint's own is the same for all.
    own, manifest = loaded.persona_override is None, checkpoint.manifest
    record = manifest.persona if own else persona_record(loaded.persona, loaded.persona_adapter)
    if isinstance(manifest, DeclaredManifest):
        # Another tool records at most the name of the base model.
        base = manifest.own_base if loaded.base_model is None else loaded.base_model
        manifest = replace(manifest, base_model=base.model_copy(update={"dtype": loaded.config.dtype}))
    return model_digest(checkpoint.path, manifest, record.fingerprinted())


def training_day(checkpoint: Checkpoint) -> date:
    """The day that a chat template is told: that of the training, or today where the run recorded none."""
    record = TrajectoryRecord.read_if_any(checkpoint.path.parent)
    try:
        return date.fromisoformat(str((record.fingerprinted if record else {}).get("day", "")))
    except ValueError:
        return date.today()
