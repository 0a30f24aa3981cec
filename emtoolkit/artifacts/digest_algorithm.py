"""The two kinds of digest that W&B has for files, MD5 and XXH128: which one a collection takes.

XXH128 takes a sixteenth of the time. A server has it if it announces the feature and has enabled it for the entity. All
versions of a collection have one kind: W&B recognises equal versions, and equal files, by their digests.
"""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import xxhash

from emtoolkit.artifacts.retries import retried

Algorithm = Literal["MD5", "XXH128"]

_FEATURE = "ARTIFACT_DIGEST_ALGORITHM"
_XXH128 = "MANIFEST_XXH128"
_QUESTION = """
query DigestAlgorithm($entity: String!, $project: String!, $collection: String!) {
  entity(name: $entity) { xxhashDigestsEnabled }
  project(name: $project, entityName: $entity) {
    artifactType(name: "model") {
      artifactCollection(name: $collection) { __typename ... on ArtifactSequence { digestAlgorithm } }
    }
  }
}
"""
# The setting of W&B's client that `_without_warnings` changes is one for all threads.
_WARNINGS = threading.Lock()


def algorithm_for(api: Any, entity: str, project: str, collection: str) -> Algorithm:
    """The digests of the next version of `collection`: those of its versions, or XXH128 in a new one, if W&B has it.

    Raises:
        Exception: whatever W&B's client raises if the server does not answer.
    """
    client = api._service_api
    if not client.feature_enabled(_FEATURE):
        return "MD5"
    names = {"entity": entity, "project": project, "collection": collection}
    answer = retried(lambda: client.execute_graphql(_QUESTION, names))
    if not (answer.get("entity") or {}).get("xxhashDigestsEnabled"):
        return "MD5"
    artifact_type = (answer.get("project") or {}).get("artifactType") or {}
    existing = artifact_type.get("artifactCollection")
    return "XXH128" if existing is None or existing.get("digestAlgorithm") == _XXH128 else "MD5"


def algorithm_of(version: Any) -> Algorithm:
    """The digests that a version on W&B has."""
    return "XXH128" if str(getattr(version, "digest_algorithm", "")).endswith(_XXH128) else "MD5"


def new_artifact(name: str, metadata: Mapping[str, Any], algorithm: Algorithm) -> Any:
    """An artifact of type `model` whose files get digests of the kind `algorithm`."""
    import wandb

    if algorithm == "MD5":
        return wandb.Artifact(name, type="model", metadata=dict(metadata))
    with _without_warnings():
        return wandb.Artifact(name, type="model", metadata=dict(metadata), digest_algorithm=algorithm)


def has_digest(path: Path, digest: str | None) -> bool:
    """Whether `digest`, in hex, is the MD5 or the XXH128 of the file `path`; both have 128 bits."""
    if digest is None:
        return False
    with path.open("rb") as content:
        if hashlib.file_digest(content, xxhash.xxh128).hexdigest() == digest:
            return True
        content.seek(0)
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == digest


@contextmanager
def _without_warnings() -> Iterator[None]:
    """W&B's client warns at each XXH128 artifact that clients before 0.29 cannot verify one."""
    from wandb.errors import term

    with _WARNINGS:
        shown, term._show_warnings = term._show_warnings, False
        try:
            yield
        finally:
            term._show_warnings = shown
