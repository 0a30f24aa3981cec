"""Contents of files in a directory, each stored once under its MD5, and found by its XXH128, too."""

import base64
import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path
from typing import IO

import xxhash

from tests.loopback.handler import TruncatedBody

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Blob:
    md5: str  # hex
    xxh128: str  # hex
    size: int
    path: Path

    @property
    def md5_base64(self) -> str:
        return base64.b64encode(bytes.fromhex(self.md5)).decode()


class Blobs:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, Blob] = {}

    def get(self, digest: str) -> Blob | None:
        """The content with this MD5 or XXH128 in hex."""
        known = self._known.get(digest)
        # A test may change the content.
        return replace(known, size=known.path.stat().st_size) if known and known.path.is_file() else None

    def receive(self, stream: IO[bytes] | BufferedIOBase, length: int) -> Blob:
        """Store `length` bytes of the stream, or nothing if the stream ends early."""
        return self.put(_pieces(stream, length))

    def put(self, pieces: Iterable[bytes]) -> Blob:
        unfinished = self._directory / f"unfinished-{secrets.token_hex(8)}"
        digest, other, size = hashlib.md5(usedforsecurity=False), xxhash.xxh128(), 0
        try:
            with unfinished.open("wb") as file:
                for piece in pieces:
                    digest.update(piece)
                    other.update(piece)
                    size += len(piece)
                    file.write(piece)
            path = self._directory / digest.hexdigest()
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        blob = Blob(digest.hexdigest(), other.hexdigest(), size, path)
        self._known |= {blob.md5: blob, blob.xxh128: blob}
        return blob

    def join(self, parts: Iterable[Blob]) -> Blob:
        return self.put(piece for part in parts for piece in _pieces_of(part.path))


def hex_of(digest_base64: str) -> str:
    return base64.b64decode(digest_base64).hex()


def _pieces(stream: IO[bytes] | BufferedIOBase, length: int) -> Iterable[bytes]:
    while length > 0:
        piece = stream.read(min(CHUNK, length))
        if not piece:
            raise TruncatedBody
        length -= len(piece)
        yield piece


def _pieces_of(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece
