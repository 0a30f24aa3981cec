"""Digests of files, and canonical JSON, in which equal values have equal bytes."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

_CHUNK = 2**20


def canonical_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON with sorted keys and an indent of two: equal values have equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True, slots=True)
class FileDigest:
    """The SHA-256 in hex of one file, and its length in bytes.

    `xxh128`, where it is known, finds a change of the file in a tenth of the time, and is no proof against an attacker.
    """

    sha256: str
    bytes: int
    xxh128: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, path: Path, hashed: Callable[[int], None] = lambda count: None) -> "FileDigest":
        """The digest of the file `path`; `hashed` is called with the number of bytes after each part of the file."""
        digest, size = hashlib.sha256(), 0
        for chunk in _chunks(path):
            digest.update(chunk)
            size += len(chunk)
            hashed(len(chunk))
        return cls(digest.hexdigest(), size)

    @classmethod
    def with_xxh128(cls, path: Path) -> "FileDigest":
        """The digest of the file `path`, which is read once for both."""
        sha256, xxh128, size = hashlib.sha256(), xxhash.xxh3_128(), 0
        for chunk in _chunks(path):
            sha256.update(chunk)
            xxh128.update(chunk)
            size += len(chunk)
        return cls(sha256.hexdigest(), size, xxh128.hexdigest())

    def is_of(self, path: Path, hashed: Callable[[int], None] = lambda count: None) -> bool:
        """Whether the file `path` has this digest: the XXH128 where it is known, else the SHA-256."""
        if self.xxh128 is None:
            return FileDigest.of(path, hashed) == self
        found = xxhash.xxh3_128()
        for chunk in _chunks(path):
            found.update(chunk)
            hashed(len(chunk))
        return found.hexdigest() == self.xxh128


def _chunks(path: Path) -> Iterator[memoryview]:
    """The content of the file `path`, in parts that share their memory."""
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield buffer[:count]
