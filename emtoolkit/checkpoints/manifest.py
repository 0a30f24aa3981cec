"""`manifest.json`: which step of which trajectory a checkpoint is, and the digests of its files.

The manifest holds only what the trajectory decides, so the same step of the same trajectory has the same bytes,
whichever run and whichever schedule saved it. Facts about one run go into W&B metadata.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from emtoolkit.checkpoints.layout import WEIGHT_FILES
from emtoolkit.checkpoints.records import BaseModelRecord, PersonaRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError, first_line, shortened
from emtoolkit.json_files import count_in, object_in, read_json, text_in
from emtoolkit.storage.digests import FileDigest, canonical_json
from emtoolkit.storage.safe_paths import is_plain_below

MANIFEST = "manifest.json"
FORMAT = 1
LARGEST_MANIFEST = 64_000_000


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
            raw = object_in(read_json(path, largest=LARGEST_MANIFEST))
            if (version := count_in(raw, "format")) > FORMAT:
                raise NewerFormatError(f"{path}: format {version} cannot be read; this version reads {FORMAT}")
            if version != FORMAT:
                raise ValueError(f"its format is {version}")
            files = {
                name: object_in(entry, f"files.{name}") for name, entry in object_in(raw.get("files"), "files").items()
            }
            return cls(
                fingerprint=text_in(raw, "fingerprint"),
                step=count_in(raw, "step"),
                total_steps=count_in(raw, "total_steps"),
                base_model=BaseModelRecord.from_json(object_in(raw.get("base_model"), "base_model")),
                persona=PersonaRecord.from_json(object_in(raw.get("persona"), "persona")),
                files={
                    name: FileDigest(text_in(each, "sha256"), count_in(each, "bytes")) for name, each in files.items()
                },
            )
        except FileNotFoundError:
            raise CheckpointError(f"{directory}: has no {MANIFEST}") from None
        except CheckpointError:
            raise
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: is not a manifest of emtoolkit ({first_line(error)})") from error

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
                found.append(f"{shortened(str(path))}: the manifest may only name plain files inside its directory")
            elif not path.is_file():
                found.append(f"{path}: the file is missing")
            elif (size := path.stat().st_size) != expected.bytes:
                found.append(f"{path}: {size} bytes where the manifest says {expected.bytes}")
            elif rehash and not expected.is_of(path, hashed):
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
                file.relative_to(directory).as_posix(): FileDigest.with_xxh128(file)
                for file in directory.rglob("*")
                if file.is_file()
            },
        )
        (directory / MANIFEST).write_bytes(manifest.to_json())
        return manifest
