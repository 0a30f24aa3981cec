"""Upload and download URLs: like signed URLs, they need no API key and belong to one file each."""

import mimetypes
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

from tests.wandb_server.blobs import Blob, Blobs


@dataclass(frozen=True, slots=True)
class Upload:
    stored: Callable[[Blob], None]
    """Called when the file is complete."""
    digest: str | None = None
    """The announced MD5 or XXH128 in hex; other content is refused, as by an object store with Content-MD5."""


class Transfers:
    def __init__(self, blobs: Blobs, base_url: str) -> None:
        self.blobs = blobs
        self.base_url = base_url
        self._signature = secrets.token_hex(8)
        self._uploads: dict[str, Upload] = {}
        self._parts: dict[str, dict[int, Blob]] = {}

    def upload_url(self, name: str, stored: Callable[[Blob], None], digest: str | None = None) -> str:
        token = secrets.token_hex(8)
        self._uploads[token] = Upload(stored, digest)
        return f"{self.base_url}/storage/{token}/{quote(name)}"

    def upload(self, token: str) -> Upload | None:
        return self._uploads.get(token)

    def start_parts(self, name: str, parts: list[tuple[int, str]]) -> dict[str, Any]:
        """The URLs of an upload in parts, each identified by its number and MD5 in hex."""
        upload_id = secrets.token_hex(8)
        arrived = self._parts[upload_id] = {}
        urls = [
            {"partNumber": number, "uploadUrl": self.upload_url(name, partial(arrived.__setitem__, number), md5)}
            for number, md5 in parts
        ]
        return {"uploadID": upload_id, "uploadUrlParts": urls}

    def join_parts(self, upload_id: str) -> Blob:
        arrived = self._parts.pop(upload_id)
        return self.blobs.join(arrived[number] for number in sorted(arrived))

    def drop_parts(self, upload_id: str) -> None:
        self._parts.pop(upload_id, None)

    def download_url(self, blob: Blob, name: str) -> str:
        return f"{self.base_url}/storage/{self._signature}/{blob.md5}/{quote(name)}"

    def download(self, signature: str, digest: str) -> Blob | None:
        return self.blobs.get(digest) if signature == self._signature else None


def mime_type(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"
