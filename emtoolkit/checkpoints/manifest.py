"""`manifest.json`: which step of which trajectory a checkpoint is, and the digests of its files.

The manifest holds only what the trajectory decides, so the same step of the same trajectory has the same bytes,
whichever run and whichever schedule saved it. Facts about one run go into W&B metadata.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from emtoolkit.checkpoints.layout import WEIGHT_FILES
from emtoolkit.checkpoints.records import BaseModelRecord, PersonaRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError
from emtoolkit.storage.digests import FileDigest, canonical_json
from emtoolkit.storage.safe_paths import is_plain_below

MANIFEST = "manifest.json"
FORMAT = 1


class NewerFormatError(CheckpointError):
    """A newer version of emtoolkit wrote the file, which is intact."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `manifest.json`."""

    fingerprint: str
    step: int
    total_steps: int
    base_model: BaseModelRecord
    persona: PersonaRecord
    files: Mapping[str, FileDigest]

    def to_json(self) -> bytes:
        return canonical_json(
            {
                "format": FORMAT,
                "fingerprint": self.fingerprint,
                "step": self.step,
                "total_steps": self.total_steps,
                "base_model": self.base_model.to_json(),
                "persona": self.persona.to_json(),
                "files": {name: {"sha256": d.sha256, "bytes": d.bytes} for name, d in sorted(self.files.items())},
            }
        )

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """The manifest of a checkpoint directory.

        Raises:
            NewerFormatError: a newer version wrote the manifest.
            CheckpointError: there is no manifest, or it is damaged.
        """
        path = directory / MANIFEST
        try:
            raw = json.loads(path.read_bytes())
            if isinstance(raw["format"], int) and raw["format"] > FORMAT:
                raise NewerFormatError(f"{path}: format {raw['format']} cannot be read; this version reads {FORMAT}")
            if raw["format"] != FORMAT:
                raise ValueError(f"its format is {raw['format']!r}")
            files = {
                name: FileDigest(str(entry["sha256"]), int(entry["bytes"])) for name, entry in raw["files"].items()
            }
            return cls(
                fingerprint=str(raw["fingerprint"]),
                step=int(raw["step"]),
                total_steps=int(raw["total_steps"]),
                base_model=BaseModelRecord.from_json(raw["base_model"]),
                persona=PersonaRecord.from_json(raw["persona"]),
                files=files,
            )
        except FileNotFoundError:
            raise CheckpointError(f"{directory}: has no {MANIFEST}") from None
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: is not a manifest of emtoolkit ({error})") from error

    def problems(
        self, directory: Path, *, rehash: bool, hashed: Callable[[int], None] = lambda count: None
    ) -> list[str]:
        """The problems of the files in `directory`, one sentence each; only sizes are compared unless `rehash`.

        `hashed` is called with the number of bytes that were hashed since its last call.
        """
        found = []
        for name, expected in self.files.items():
            path = directory / name
            if not is_plain_below(directory, name):
                found.append(f"{path}: the manifest may only name plain files inside its directory")
            elif not path.is_file():
                found.append(f"{path}: the file is missing")
            elif (size := path.stat().st_size) != expected.bytes:
                found.append(f"{path}: {size} bytes where the manifest says {expected.bytes}")
            elif rehash and FileDigest.of(path, hashed) != expected:
                found.append(f"{path}: its content does not match the digest in the manifest")
        unlisted = self.unlisted_weights(directory)
        return found + [f"{directory / name}: is not in the manifest, and a loader would read it" for name in unlisted]

    def unlisted_weights(self, directory: Path) -> list[str]:
        """The files in `directory` that hold weights by their name, and that the manifest does not list."""
        return sorted(name for name in WEIGHT_FILES - self.files.keys() if (directory / name).exists())


@dataclass(frozen=True, slots=True)
class TrajectorySeal:
    """Writes the manifests of one trajectory of `total_steps` optimizer steps."""

    identity: Identity
    total_steps: int

    def seal(self, directory: Path, step: int) -> Manifest:
        """Hash the files in `directory` and write the manifest that lists them, as the last file."""
        manifest = Manifest(
            fingerprint=self.identity.fingerprint,
            step=step,
            total_steps=self.total_steps,
            base_model=self.identity.base_model,
            persona=self.identity.persona,
            files={
                file.relative_to(directory).as_posix(): FileDigest.of(file)
                for file in directory.rglob("*")
                if file.is_file()
            },
        )
        (directory / MANIFEST).write_bytes(manifest.to_json())
        return manifest
