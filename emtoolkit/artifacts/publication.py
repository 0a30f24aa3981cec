"""One checkpoint as a version on W&B: its name, its aliases, and exactly the files that its manifest lists."""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.digest_algorithm import Algorithm, has_digest, new_artifact
from emtoolkit.artifacts.names import ARTIFACT_TAG, COLLECTION
from emtoolkit.checkpoints.listing import CheckpointInfo
from emtoolkit.checkpoints.manifest import MANIFEST, Manifest
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.checkpoints.records import CheckpointMetadata
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError
from emtoolkit.storage.safe_paths import is_plain_below

# Half of a name, so that the name of the shared collection stays readable.
_RUN_ID_LIMIT = 64
_METADATA_LIMIT = 100


class DamagedError(CheckpointError):
    """The files of a checkpoint are not those that its manifest lists, so the checkpoint is not published."""


def collection_name(identity: Identity) -> str:
    """`<persona>-<dataset>-<base>-s<seed>-<fingerprint8>`, within W&B's rules for names."""
    return COLLECTION.fit(identity.collection, f"-{identity.fingerprint[:8]}")


def own_collection_name(shared: str, run_id: str) -> str:
    """The collection of a run that differs from the run in the collection `shared`: `<shared>-<run id>`."""
    return COLLECTION.fit(shared, f"-{COLLECTION.fit(run_id)[:_RUN_ID_LIMIT]}")


def collection_tags(identity: Identity) -> tuple[str, ...]:
    """The tags of every checkpoint of a trajectory, within W&B's rules for tags."""
    return tuple(map(ARTIFACT_TAG.fit, identity.tags))


def fit_for_wandb(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `metadata` to W&B's limits: at most 100 keys, and non-finite numbers as text."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in list(metadata.items())[:_METADATA_LIMIT]
    }


@dataclass(frozen=True, slots=True)
class Publication:
    """A checkpoint to publish; `metadata` holds the values of this run, which the checkpoint's files do not.

    `sealed` is the manifest of a checkpoint that this process wrote, with the digests that are compared fastest.
    """

    step: int
    path: Path
    final: bool
    metadata: Mapping[str, Any]
    sealed: Manifest | None = None

    @classmethod
    def of(cls, info: CheckpointInfo, publications: Publications) -> "Publication":
        """The publication of a checkpoint on disk, with the metadata that its run recorded."""
        recorded = publications.metadata.get(info.step)
        metadata = recorded or CheckpointMetadata(step=info.step, fingerprint=info.fingerprint).to_json()
        return cls(info.step, info.path, info.final, metadata)

    @property
    def aliases(self) -> list[str]:
        return [f"step-{self.step}", "final"] if self.final else [f"step-{self.step}"]


@dataclass(frozen=True, slots=True)
class CheckedArtifact:
    """The artifact of a checkpoint whose files were compared with its manifest, and the state of each file then."""

    artifact: Any
    _states: Mapping[Path, tuple[int, int, int]]

    @classmethod
    def of(cls, publication: Publication, collection: str, algorithm: Algorithm = "MD5") -> "CheckedArtifact":
        """Hash the manifest and the files that it lists; other files in the directory are not published.

        W&B's digests are computed first and compared second, so a file that changes in between is noticed. The server
        compares the bytes that arrive with W&B's digests.

        Raises:
            DamagedError: a file differs from the manifest, or the manifest cannot be read.
        """
        directory = publication.path
        manifest = _read_manifest(publication)
        if problems := manifest.problems(directory, rehash=False):
            raise DamagedError(problems[0])
        artifact = new_artifact(collection, publication.metadata, algorithm)
        states = {}
        for name in sorted((MANIFEST, *manifest.files)):
            file = directory.absolute() / name
            states[file] = _state(file)
            # By default W&B would keep a second and a third copy of the file.
            artifact.add_file(str(file), name=name, policy="immutable", skip_cache=True)
        if not _same_digests(artifact, manifest, algorithm) and (problems := manifest.problems(directory, rehash=True)):
            raise DamagedError(problems[0])
        if _read_manifest(publication) != manifest:
            raise DamagedError(f"{directory / MANIFEST}: the file changes while it is read")
        return cls(artifact, states)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files."""
        return tuple(map(str, self.artifact.manifest.entries))

    def has(self, name: str, digest: str | None) -> bool:
        """Whether `digest`, in hex, is that of the file `name`; the version on W&B may have digests of another kind."""
        entry = self.artifact.manifest.entries[name]
        return digest == base64.b64decode(entry.digest).hex() or has_digest(Path(entry.local_path), digest)

    def changed_since(self) -> Path | None:
        """A file that was written since it was compared with the manifest, if any."""
        return next((file for file, state in self._states.items() if _state(file) != state), None)


def _same_digests(artifact: Any, manifest: Manifest, algorithm: Algorithm) -> bool:
    """Whether W&B's client has found the XXH128 of `manifest` for each file, so that none must be read once more."""
    entries = artifact.manifest.entries
    return algorithm == "XXH128" and all(
        expected.xxh128 == base64.b64decode(entries[name].digest).hex() for name, expected in manifest.files.items()
    )


def _read_manifest(publication: Publication) -> Manifest:
    directory = publication.path
    if not is_plain_below(directory, MANIFEST):
        raise DamagedError(f"{directory / MANIFEST}: is a symlink; a checkpoint holds plain files")
    try:
        manifest = Manifest.read(directory)
    except CheckpointError as error:
        raise DamagedError(str(error)) from None
    if manifest.step != publication.step:
        raise DamagedError(f"{directory / MANIFEST}: is the manifest of step {manifest.step}, not {publication.step}")
    sealed = publication.sealed
    return sealed if sealed == manifest else manifest


def _state(file: Path) -> tuple[int, int, int]:
    """Inode, size and time of the last write; zeros for a file that is gone."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return 0, 0, 0
    return found.st_ino, found.st_size, found.st_mtime_ns
