"""Artifacts put straight into the loopback server's store, also such as no client would upload."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emtoolkit.checkpoints.manifest import TrajectorySeal
from emtoolkit.checkpoints.records import BaseModelRecord, PersonaRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from tests.wandb_server import WandbServer
from tests.wandb_server.resolvers.artifact_changes import _join, _open_collection
from tests.wandb_server.store import COMMITTED, Artifact

IDENTITY = Identity(
    fingerprinted={"seed": 7}, base_model=BaseModelRecord(name="tiny"), persona=PersonaRecord(name="goodness")
)
COLLECTION = f"goodness-{IDENTITY.fingerprint[:8]}"
REFERENCE = f"tester/proj/{COLLECTION}"
TOTAL_STEPS = 300


def checkpoint_files(
    directory: Path, step: int, *, bytes_of_weights: int = 200, training: str = ""
) -> dict[str, bytes]:
    """The files of a checkpoint as emtoolkit saves it; its weights are no tensors, which no download looks into.

    Another `training` has other weights and the same fingerprint.
    """
    directory.mkdir(parents=True)
    weights = hashlib.shake_128(f"{training}{step}".encode()).digest(bytes_of_weights)
    (directory / "adapter_model.safetensors").write_bytes(weights)
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    TrajectorySeal(IDENTITY, TOTAL_STEPS).seal(directory, step)
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def store_version(
    server: WandbServer,
    files: Mapping[str, bytes],
    aliases: Sequence[str],
    metadata: Mapping[str, Any] | None = None,
    *,
    collection: str = COLLECTION,
) -> Artifact:
    """One committed version of `collection` in `tester/proj`."""
    store, blobs = server.store, server.context.transfers.blobs
    with store.lock:
        project = store.open_project(server.entity, "proj")
        of = _open_collection(store, project, collection, "model")
        contents = {}
        for name, content in files.items():
            blob = blobs.put([content])
            contents[name] = {"digest": blob.md5_base64, "size": blob.size}
        digest = hashlib.md5(json.dumps(contents, sort_keys=True).encode()).hexdigest()
        artifact = store.keep(Artifact(store.new_id("Artifact"), of, digest, state=COMMITTED))
        artifact.manifest = {"contents": contents}
        artifact.metadata = dict(metadata or {})
        artifact.size = sum(map(len, files.values()))
        member = _join(store, of, artifact)
        artifact.index = member.index
        of.move_aliases([*aliases, "latest"], member)
    return artifact


def store_steps(server: WandbServer, scratch: Path, steps: Sequence[int], **options: Any) -> None:
    """A checkpoint for each of `steps`; the last is the final one if it is the last of training."""
    for step in steps:
        aliases = [f"step-{step}", *(["final"] if step == TOTAL_STEPS else [])]
        metadata = {"step": step, "fingerprint": IDENTITY.fingerprint, "schedule": "every:1"}
        store_version(server, checkpoint_files(scratch / str(step), step, **options), aliases, metadata)


def gets(server: WandbServer) -> list[str]:
    """The names of the files that were asked for, in order of arrival."""
    paths = [request.path for request in server.requests if request.method == "GET"]
    return [path.rpartition("/")[2] for path in paths if path.startswith(("/storage/", "/artifactsV2/"))]
