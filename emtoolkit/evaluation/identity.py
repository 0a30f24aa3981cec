"""What an answer belongs to: digests of the model and of the sampling that made it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emtoolkit.checkpoints.layout import ADAPTER_CONFIG
from emtoolkit.checkpoints.manifest import Manifest
from emtoolkit.errors import CheckpointError
from emtoolkit.storage.digests import canonical_json

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
    """What decides the logits in the adapter's config in `directory`, besides its weights; None without an adapter.

    Raises:
        CheckpointError: the config cannot be read.
    """
    path = directory / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
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
