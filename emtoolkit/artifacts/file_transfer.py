"""Download of one file over HTTP: limited in time and size, retried, and continued after an interruption."""

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import requests
import urllib3
import xxhash

from emtoolkit.artifacts.collection import RemoteFile
from emtoolkit.checkpoints.remote import Cancelled, RefusedError
from emtoolkit.errors import CheckpointError

_CHUNK = 256 * 1024
# An attempt that received this many bytes does not count as a failure, so that a large file survives a bad line.
_PROGRESS = 8 * 1024 * 1024
_LONGEST_PAUSE = 30.0
# A proxy may answer with a page of its own. Content that is wrong this often is what the server holds.
_WRONG_ANSWERS = 3


class TransferError(CheckpointError):
    """The network or the server failed; running the same command again continues the download."""


class _RetryableError(Exception):
    """An attempt failed and another may succeed; `pause` is the server's requested delay in seconds."""

    def __init__(self, why: str, pause: float = 0.0) -> None:
        super().__init__(why)
        self.pause = pause


class _RefusedUrlError(Exception):
    """The server refuses to send the file from this URL."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Time limits for connecting and reading, attempts without progress, and the first pause; all times in seconds."""

    connect: float = 10.0
    read: float = 30.0
    attempts: int = 5
    pause: float = 0.5


class _PartialFile:
    """The received part of a file, and its digests."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Never follow a link, which another program may have put here.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.fdopen(os.open(path, flags, 0o644), "r+b")
        self._restart_digest()
        while chunk := self._file.read(_CHUNK):
            self._count(chunk)

    def __enter__(self) -> "_PartialFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def has(self, digest: str) -> bool:
        """Whether `digest`, in hex, is one of those that W&B knows."""
        return digest in (self._xxh128.hexdigest(), self._md5.hexdigest())

    def append(self, chunk: bytes) -> None:
        try:
            self._file.write(chunk)
        except OSError as error:
            raise CheckpointError(f"{self._path}: writing failed ({error.strerror or error})") from error
        self._count(chunk)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._restart_digest()

    def _restart_digest(self) -> None:
        # Chosen by W&B, which does not say which one it declares; the manifest's SHA-256 protects the file.
        self._md5, self._xxh128 = hashlib.md5(usedforsecurity=False), xxhash.xxh128()
        self.size = 0

    def _count(self, chunk: bytes) -> None:
        self._md5.update(chunk)
        self._xxh128.update(chunk)
        self.size += len(chunk)


class Transfer:
    """Downloads files over one connection, in one thread; `on_bytes` is called with the size of each chunk."""

    def __init__(
        self,
        api_key: str | None,
        retry: RetryPolicy,
        stop: threading.Event | None = None,
        on_bytes: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._session = requests.Session()
        self._api_key = api_key
        self._retry = retry
        self._stop = stop or threading.Event()
        self._on_bytes = on_bytes

    def fetch(self, file: RemoteFile, path: Path) -> None:
        """Download `file` to `path`, continuing a part that `path` may hold.

        Raises:
            TransferError: the server or the network failed too often.
            RefusedError: the content differs from W&B's declaration; `path` has been deleted.
            Cancelled: the download was cancelled.
        """
        with _PartialFile(path) as partial:
            if partial.size > file.size:
                partial.restart()
            try:
                self._fetch_right_content(file, partial)
            except RefusedError:
                path.unlink(missing_ok=True)
                raise

    def _fetch_right_content(self, file: RemoteFile, partial: _PartialFile) -> None:
        """Download until the content is what W&B declares, which one wrong answer, or a damaged part, does not end."""
        refusal: RefusedError | None = None
        for attempt in range(_WRONG_ANSWERS):
            try:
                self._complete(file, partial)
                if _matches(partial, file):
                    return
                refusal = RefusedError(f"{file}: the content does not match the digest declared by W&B")
            except RefusedError as error:
                refusal = error
            except TransferError as error:
                raise refusal or error from None
            partial.restart()
            if attempt + 1 < _WRONG_ANSWERS and self._stop.wait(self._retry.pause):
                raise Cancelled
        if refusal is not None:
            raise refusal

    def _complete(self, file: RemoteFile, partial: _PartialFile) -> None:
        failures = 0
        own = file.url is None
        while partial.size < file.size:
            before = partial.size
            try:
                self._attempt(file, partial, own=own)
            except _RefusedUrlError as reason:
                if own or file.own_url is None:
                    raise TransferError(f"{file}: W&B refuses to send the file ({reason})") from None
                own = True
            except _RetryableError as failure:
                failures = 0 if partial.size - before >= _PROGRESS else failures + 1
                if failures >= self._retry.attempts:
                    raise TransferError(
                        f"{file}: the download failed {failures} times ({failure}); "
                        "run the same command again to continue"
                    ) from None
                pause = min(max(failure.pause, self._retry.pause * 2.0 ** (failures - 1)), _LONGEST_PAUSE)
                if failures and self._stop.wait(pause):
                    raise Cancelled from None

    def _attempt(self, file: RemoteFile, partial: _PartialFile, *, own: bool) -> None:
        url = file.own_url if own else file.url
        if url is None:
            raise _RefusedUrlError("no URL was given")
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={partial.size}-"} if partial.size else {})
        auth = ("api", self._api_key) if own and self._api_key else None
        timeout = (self._retry.connect, self._retry.read)
        try:
            with self._session.get(url, headers=headers, auth=auth, timeout=timeout, stream=True) as response:
                _check_status(response, partial)
                self._receive(response, file, partial)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _RetryableError(_briefly(error)) from None

    def _receive(self, response: requests.Response, file: RemoteFile, partial: _PartialFile) -> None:
        declared = response.headers.get("Content-Length", "")
        if declared.isdecimal() and int(declared) != (expected := file.size - partial.size):
            raise RefusedError(
                f"{file}: W&B declares a size of {file.size} bytes, but announces {int(declared)} bytes where "
                f"{expected} are expected"
            )
        # Undecoded: compressed content could expand to any size.
        for chunk in response.raw.stream(_CHUNK, decode_content=False):
            if self._stop.is_set():
                raise Cancelled
            if partial.size + len(chunk) > file.size:
                raise RefusedError(f"{file}: the content is longer than the {file.size} bytes declared by W&B")
            partial.append(chunk)
            self._on_bytes(len(chunk))
        if partial.size < file.size:
            raise _RetryableError(f"received only {partial.size} of {file.size} bytes")


def _check_status(response: requests.Response, partial: _PartialFile) -> None:
    status = response.status_code
    if status == 206:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {partial.size}-"):
            partial.restart()
            raise _RetryableError("the server sent another range of bytes than requested")
    elif status == 200:
        if partial.size:
            partial.restart()
    elif status == 416:
        partial.restart()
        raise _RetryableError("the server does not have the requested range of bytes")
    elif status in (401, 403, 404):
        raise _RefusedUrlError(f"HTTP {status}")
    else:
        after = response.headers.get("Retry-After", "")
        raise _RetryableError(f"HTTP {status}", float(after) if after.isdecimal() else 0.0)


def _matches(partial: _PartialFile, file: RemoteFile) -> bool:
    return partial.size == file.size and (file.digest is None or partial.has(file.digest))


def _briefly(error: Exception) -> str:
    """The kind of failure; the whole text would show signed URLs."""
    reasons = {
        requests.ConnectTimeout: "connecting timed out",
        requests.ReadTimeout: "the server did not answer in time",
        urllib3.exceptions.ReadTimeoutError: "the server stopped sending",
        requests.ConnectionError: "the connection failed",
    }
    return next((reason for kind, reason in reasons.items() if isinstance(error, kind)), "the connection was cut")
