"""`hub.json`: where the hub had a downloaded checkpoint, and which digests the hub declares for its files.

With the digests a checkpoint of another tool, which has no manifest, is verified like any other one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from emtoolkit.checkpoints.layout import ADAPTER_CONFIG, TRAINER_STATE
from emtoolkit.checkpoints.manifest import LARGEST_MANIFEST, MANIFEST, Manifest
from emtoolkit.checkpoints.records import BaseModelRecord, PersonaRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.json_files import count_in, object_in, read_json, text_in
from emtoolkit.storage.digests import FileDigest, canonical_json

ORIGIN = "hub.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Origin:
    """The content of `hub.json`.

    `training` tells trainings of one repository apart. `declared` are the digests that the hub declares: SHA-256 of a
    file in LFS, SHA-1 of the git blob of any other one. `files` are the digests of what arrived.
    """

    repository: str
    training: str
    revision: str
    commit: str
    folder: str
    step: int
    declared: Mapping[str, str]
    files: Mapping[str, FileDigest]

    def to_json(self) -> bytes:
        files = {name: asdict(digest) for name, digest in self.files.items()}
        values = {key: getattr(self, key) for key in ("repository", "training", "revision", "commit", "folder", "step")}
        return canonical_json({"format": _FORMAT, **values, "declared": dict(self.declared), "files": files})

    @classmethod
    def read_if_any(cls, directory: Path) -> "Origin | None":
        """The origin of the checkpoint in `directory`; None if the checkpoint was not downloaded from the hub.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = directory / ORIGIN
        try:
            raw = object_in(read_json(path, largest=LARGEST_MANIFEST))
            if count_in(raw, "format") != _FORMAT:
                raise ValueError(f"its format is {raw['format']}, and this version reads {_FORMAT}")
            declared, files = object_in(raw.get("declared"), "declared"), object_in(raw.get("files"), "files")
            entries = {name: object_in(entry, f"files.{name}") for name, entry in files.items()}
            return cls(
                repository=text_in(raw, "repository"),
                training=text_in(raw, "training"),
                revision=text_in(raw, "revision"),
                commit=text_in(raw, "commit"),
                folder=text_in(raw, "folder"),
                step=count_in(raw, "step"),
                declared={name: text_in(declared, name) for name in declared},
                files={n: FileDigest(text_in(each, "sha256"), count_in(each, "bytes")) for n, each in entries.items()},
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: is not a record of a download from the hub ({error})") from error


class DeclaredManifest(Manifest):
    """The manifest of another tool's checkpoint, made of what the hub declares; its persona is not recorded."""

    __slots__ = ()

    @classmethod
    def of(cls, directory: Path, origin: Origin) -> "DeclaredManifest":
        """The declared facts about the checkpoint in `directory`. `total_steps` is 0 if no Trainer tells it.

        Raises:
            CheckpointError: the adapter's config cannot be read.
        """
        return cls(
            fingerprint=fingerprint_of(origin.repository, origin.training),
            step=origin.step,
            total_steps=_total_steps(directory),
            base_model=_base_model(directory, origin),
            persona=PersonaRecord.from_json({"name": "baseline", "composition": "none"}),
            files=origin.files,
        )

    @property
    def own_base(self) -> BaseModelRecord:
        """The record of the checkpoint as a base model, with all of its files: a whole model has its own tokenizer."""
        files = {name: digest.sha256 for name, digest in self.files.items() if name != TRAINER_STATE}
        content = hashlib.sha256(canonical_json(files)).hexdigest()
        return BaseModelRecord.from_json({"name": self.base_model.name, "content": content})


def fingerprint_of(repository: str, training: str) -> str:
    """The substitute for the fingerprint of a training that another tool has published."""
    return hashlib.sha256(canonical_json([repository, training])).hexdigest()


def manifest_in(directory: Path) -> Manifest | None:
    """The manifest of emtoolkit in a checkpoint's directory, or what the hub declared; None if there is neither.

    Raises:
        CheckpointError: it cannot be read.
    """
    if (directory / MANIFEST).exists():
        return Manifest.read(directory)
    origin = Origin.read_if_any(directory)
    return None if origin is None else DeclaredManifest.of(directory, origin)


def _total_steps(directory: Path) -> int:
    try:
        return count_in(object_in(read_json(directory / TRAINER_STATE, finite=False)), "max_steps")
    except (OSError, ValueError):
        return 0


def _base_model(directory: Path, origin: Origin) -> BaseModelRecord:
    try:
        config = object_in(read_json(directory / ADAPTER_CONFIG))
    except FileNotFoundError:
        return BaseModelRecord.from_json({"name": origin.repository})
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / ADAPTER_CONFIG}: cannot be read ({error})") from error
    named = {"name": config.get("base_model_name_or_path"), "revision": config.get("revision")}
    return BaseModelRecord.from_json({key: value for key, value in named.items() if isinstance(value, str)})
