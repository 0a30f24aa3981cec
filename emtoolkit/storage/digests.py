"""Digests of files, and canonical JSON, in which equal values have equal bytes."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHUNK = 2**20


def canonical_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON with sorted keys and an indent of two: equal values have equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True, slots=True)
class FileDigest:
    """The SHA-256 in hex of one file, and its length in bytes."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path, hashed: Callable[[int], None] = lambda count: None) -> "FileDigest":
        """The digest of the file `path`; `hashed` is called with the number of bytes after each part of the file."""
        digest, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(_CHUNK))
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                size += count
                hashed(count)
        return cls(digest.hexdigest(), size)
