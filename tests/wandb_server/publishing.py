"""The requests of W&B's client for logging an artifact, without the client: fast for many versions."""

import base64
import hashlib
import json
from typing import Any

import requests

from tests.processes import HANG_SECONDS
from tests.wandb_server.server import WandbServer

_SESSION = requests.Session()
_SESSION.trust_env = False

CREATE = """
mutation CreateArtifact($input: CreateArtifactInput!) { createArtifact(input: $input) { artifact { id state } } }
"""
CREATE_FILES = """
mutation CreateArtifactFiles($input: CreateArtifactFilesInput!) {
  createArtifactFiles(input: $input) { files { edges { node { name uploadUrl } } } }
}
"""
CREATE_MANIFEST = """
mutation CreateArtifactManifest($input: CreateArtifactManifestInput!) {
  createArtifactManifest(input: $input) { artifactManifest { file { uploadUrl } } }
}
"""
COMMIT = """
mutation CommitArtifact($artifactID: ID!) { commitArtifact(input: {artifactID: $artifactID}) { artifact { id } } }
"""


def ask(server: WandbServer, query: str, **variables: Any) -> Any:
    """Send a GraphQL query and return its data.

    Raises:
        ValueError: the server answered with a GraphQL error.
    """
    answer = _SESSION.post(
        f"{server.url}/graphql",
        json={"query": query, "variables": variables},
        auth=("api", server.api_key),
        timeout=HANG_SECONDS,
    )
    answer.raise_for_status()
    body = answer.json()
    if body.get("errors"):
        raise ValueError(body["errors"][0]["message"])
    return body["data"]


def publish(
    server: WandbServer,
    project: str,
    collection: str,
    files: dict[str, bytes],
    **about: Any,
) -> str:
    """Log one version with these files and the options of `create`; return its id."""
    artifact = create(server, project, collection, files, **about)
    if artifact["state"] != "COMMITTED":
        upload(server, artifact["id"], files)
        ask(server, COMMIT, artifactID=artifact["id"])
    return str(artifact["id"])


def create(
    server: WandbServer,
    project: str,
    collection: str,
    files: dict[str, bytes],
    *,
    type: str = "model",
    aliases: tuple[str, ...] = (),
    tags: tuple[str, ...] = (),
    metadata: dict[str, Any] | None = None,
) -> dict[str, str]:
    """Send the first request only: returns a pending artifact, or the committed version with equal content."""
    input = {
        "entityName": server.entity,
        "projectName": project,
        "artifactTypeName": type,
        "artifactCollectionName": collection,
        "digest": digest(files),
        "digestAlgorithm": "MANIFEST_MD5",
        "enableDigestDeduplication": True,
        "aliases": [{"artifactCollectionName": collection, "alias": alias} for alias in ("latest", *aliases)],
        "tags": [{"tagName": tag} for tag in tags],
        "metadata": json.dumps(metadata or {}),
    }
    artifact: dict[str, str] = ask(server, CREATE, input=input)["createArtifact"]["artifact"]
    return artifact


def upload(server: WandbServer, artifact_id: str, files: dict[str, bytes]) -> list[str]:
    """Upload the files and the manifest; return the names of files that the server did not have."""
    specs = [{"artifactID": artifact_id, "name": name, "md5": md5(content)} for name, content in files.items()]
    answer = ask(server, CREATE_FILES, input={"artifactFiles": specs, "storageLayout": "V2"})
    nodes = [edge["node"] for edge in answer["createArtifactFiles"]["files"]["edges"]]
    missing = [node for node in nodes if node["uploadUrl"]]
    for node in missing:
        _SESSION.put(node["uploadUrl"], data=files[node["name"]], timeout=HANG_SECONDS).raise_for_status()
    upload_manifest(server, artifact_id, files)
    return [node["name"] for node in missing]


def upload_manifest(server: WandbServer, artifact_id: str, files: dict[str, bytes]) -> None:
    text = json.dumps(
        {
            "version": 1,
            "storagePolicy": "wandb-storage-policy-v1",
            "storagePolicyConfig": {"storageLayout": "V2"},
            "contents": {
                name: {"digest": md5(content), "size": len(content), "birthArtifactID": artifact_id}
                for name, content in files.items()
            },
        }
    ).encode()
    input = {"artifactID": artifact_id, "name": "wandb_manifest.json", "digest": md5(text), "type": "FULL"}
    file = ask(server, CREATE_MANIFEST, input=input)["createArtifactManifest"]["artifactManifest"]["file"]
    _SESSION.put(file["uploadUrl"], data=text, timeout=HANG_SECONDS).raise_for_status()


def md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def digest(files: dict[str, bytes]) -> str:
    """The artifact's digest over names and contents, computed as by the client."""
    whole = hashlib.md5(b"wandb-artifact-manifest-v1\n", usedforsecurity=False)
    for name, content in sorted(files.items()):
        whole.update(f"{name}:{md5(content)}\n".encode())
    return whole.hexdigest()
