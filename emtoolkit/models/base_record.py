"""Which base model a run has: its files or its commit; nothing here loads a model or a library that does."""

import hashlib
from pathlib import Path
from typing import Any

from emtoolkit.checkpoints.records import BaseModelRecord
from emtoolkit.config.sections import ModelConfig
from emtoolkit.models.location import model_path
from emtoolkit.models.remote_code import code_digest
from emtoolkit.storage.digests import FileDigest

# The files of a local model directory that decide the logits; its digest covers no others.
_DECISIVE_FILES = ("*.safetensors", "*.bin", "config.json", "tokenizer.json", "tokenizer_config.json", "*.jinja")


def base_identity(config: ModelConfig) -> BaseModelRecord:
    """The record of the base model for a fingerprint: the content of a directory, or id and commit.

    The commit of a hub id is the one in the local cache, or the configured revision before a download. A base model
    in 4-bit has other logits, and therefore another record. The record of a base model whose code is run has a digest
    of the code.
    """
    path = model_path(config)
    options: dict[str, Any] = {"load_in_4bit": True} if config.load_in_4bit else {}
    if config.trust_remote_code:
        # A commit on the hub contains the code.
        options |= {"trust_remote_code": True} | ({"code": code_digest(Path(path))} if Path(path).is_dir() else {})
    if not Path(path).is_dir():
        revision = _cached_commit(path, config.revision) or config.revision
        return BaseModelRecord.from_json({"name": path, "revision": revision} | options)
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _DECISIVE_FILES for file in Path(path).glob(pattern)}):
        digest.update(f"{file.name} {FileDigest.of(file).sha256}\n".encode())
    return BaseModelRecord.from_json({"name": Path(path).name, "content": digest.hexdigest()} | options)


def _cached_commit(name: str, revision: str | None) -> str | None:
    snapshot = cached_snapshot(name, revision)
    return None if snapshot is None else snapshot.name


def cached_snapshot(name: str, revision: str | None) -> Path | None:
    """The directory in the local cache that holds the files of a hub id."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision or "main")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None
