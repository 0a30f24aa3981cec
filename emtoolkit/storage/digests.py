"""Digests of files, and canonical JSON, in which equal values have equal bytes."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON with sorted keys and an indent of two: equal values have equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True, slots=True)
class FileDigest:
    """The SHA-256 in hex of one file, and its length in bytes."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> "FileDigest":
        """The digest of the file `path`."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return cls(digest.hexdigest(), file.tell())
