"""Digests of files, and JSON of which equal values give equal bytes."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> bytes:
    """`value` as JSON with sorted keys: equal values give equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True, slots=True)
class FileDigest:
    """One file of a checkpoint: its SHA-256 in hex and its length in bytes."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> "FileDigest":
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return cls(digest.hexdigest(), file.tell())
