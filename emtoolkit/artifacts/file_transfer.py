"""One file over HTTP onto the disk: bounded in time and in bytes, tried again, continued where it stopped."""

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import requests
import urllib3

from emtoolkit.artifacts.collection import RefusedError, RemoteFile
from emtoolkit.errors import CheckpointError

_CHUNK = 256 * 1024
# An attempt that brought so much was no failure: a long download over a bad line goes on as long as it gets on.
_PROGRESS = 8 * 1024 * 1024
_LONGEST_PAUSE = 30.0


class TransferError(CheckpointError):
    """The network or the server does not deliver; the same command goes on where it stopped."""


class Cancelled(Exception):
    """Somebody asked for an end; what has arrived stays where it is."""


class _RetryableError(Exception):
    """This attempt failed and another may not; `pause` is how long the server asked to wait, in seconds."""

    def __init__(self, why: str, pause: float = 0.0) -> None:
        super().__init__(why)
        self.pause = pause


class _NotGiven(Exception):
    """The server does not give the file at this address."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a transfer waits, in seconds, and how often it tries without getting on."""

    connect: float = 10.0
    read: float = 30.0
    attempts: int = 5
    pause: float = 0.5


class _PartialFile:
    """A file as far as it has arrived, and the MD5 of that."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Never through a link: what is there was not necessarily put there by us.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.fdopen(os.open(path, flags, 0o644), "r+b")
        self._restart_digest()
        while chunk := self._file.read(_CHUNK):
            self._count(chunk)

    def __enter__(self) -> "_PartialFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def md5(self) -> str:
        return self._md5.hexdigest()

    def append(self, chunk: bytes) -> None:
        try:
            self._file.write(chunk)
        except OSError as error:
            raise CheckpointError(f"{self._path}: it could not be written ({error.strerror or error})") from error
        self._count(chunk)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._restart_digest()

    def _restart_digest(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)  # W&B's choice; the manifest's SHA-256 is what protects
        self.size = 0

    def _count(self, chunk: bytes) -> None:
        self._md5.update(chunk)
        self.size += len(chunk)


class Transfer:
    """Fetches files over one connection, in one thread; `arrived` is told the bytes of each chunk."""

    def __init__(
        self,
        api_key: str | None,
        patience: RetryPolicy,
        stop: threading.Event | None = None,
        arrived: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._session = requests.Session()
        self._api_key = api_key
        self._patience = patience
        self._stop = stop or threading.Event()
        self._arrived = arrived

    def fetch(self, file: RemoteFile, path: Path) -> None:
        """Make `path` the file, continuing what is there of it.

        Raises:
            TransferError: it does not arrive.
            RefusedError: what arrives is not what W&B declares; `path` is gone then.
            Cancelled: somebody asked for an end.
        """
        with _PartialFile(path) as arriving:
            continued = arriving.size > 0
            if arriving.size > file.size:
                arriving.restart()
            try:
                self._complete(file, arriving)
                if continued and not _is(arriving, file):
                    # The part that was there may be what is wrong, as after a power cut.
                    arriving.restart()
                    self._complete(file, arriving)
                if not _is(arriving, file):
                    raise RefusedError(f"{file}: its content does not match the digest that W&B declares")
            except RefusedError:
                path.unlink(missing_ok=True)
                raise

    def _complete(self, file: RemoteFile, arriving: _PartialFile) -> None:
        failures = 0
        own = file.url is None
        while arriving.size < file.size:
            before = arriving.size
            try:
                self._attempt(file, arriving, own=own)
            except _NotGiven as reason:
                if own or file.own_url is None:
                    raise TransferError(f"{file}: W&B does not give it ({reason})") from None
                own = True
            except _RetryableError as failure:
                failures = 0 if arriving.size - before >= _PROGRESS else failures + 1
                if failures >= self._patience.attempts:
                    raise TransferError(
                        f"{file}: it did not arrive in {failures} attempts ({failure}); "
                        "the same again goes on where this stopped"
                    ) from None
                pause = min(max(failure.pause, self._patience.pause * 2.0 ** (failures - 1)), _LONGEST_PAUSE)
                if failures and self._stop.wait(pause):
                    raise Cancelled from None

    def _attempt(self, file: RemoteFile, arriving: _PartialFile, *, own: bool) -> None:
        url = file.own_url if own else file.url
        if url is None:
            raise _NotGiven("it tells no address of it")
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={arriving.size}-"} if arriving.size else {})
        auth = ("api", self._api_key) if own and self._api_key else None
        timeout = (self._patience.connect, self._patience.read)
        try:
            with self._session.get(url, headers=headers, auth=auth, timeout=timeout, stream=True) as response:
                _check_status(response, arriving)
                self._receive(response, file, arriving)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _RetryableError(_briefly(error)) from None

    def _receive(self, response: requests.Response, file: RemoteFile, arriving: _PartialFile) -> None:
        declared = response.headers.get("Content-Length", "")
        if declared.isdecimal() and int(declared) != (expected := file.size - arriving.size):
            raise RefusedError(
                f"{file}: W&B declares a size of {file.size} bytes, and sends {int(declared)} where "
                f"{expected} are expected"
            )
        # Undecoded, so that these are the bytes on the wire and none can unfold into more.
        for chunk in response.raw.stream(_CHUNK, decode_content=False):
            if self._stop.is_set():
                raise Cancelled
            if arriving.size + len(chunk) > file.size:
                raise RefusedError(f"{file}: it is longer than the {file.size} bytes that W&B declares")
            arriving.append(chunk)
            self._arrived(len(chunk))
        if arriving.size < file.size:
            raise _RetryableError(f"only {arriving.size} of {file.size} bytes came")


def _check_status(response: requests.Response, arriving: _PartialFile) -> None:
    status = response.status_code
    if status == 206:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {arriving.size}-"):
            arriving.restart()
            raise _RetryableError("the server sent another part than the one asked for")
    elif status == 200:
        if arriving.size:
            arriving.restart()
    elif status == 416:
        arriving.restart()
        raise _RetryableError("the server has no such part of it")
    elif status in (401, 403, 404):
        raise _NotGiven(f"HTTP {status}")
    else:
        after = response.headers.get("Retry-After", "")
        raise _RetryableError(f"HTTP {status}", float(after) if after.isdecimal() else 0.0)


def _is(arriving: _PartialFile, file: RemoteFile) -> bool:
    return arriving.size == file.size and file.md5 in (None, arriving.md5)


def _briefly(error: Exception) -> str:
    """The kind of failure; the whole text would show signed addresses."""
    words = {
        requests.ConnectTimeout: "no connection in time",
        requests.ReadTimeout: "no answer in time",
        urllib3.exceptions.ReadTimeoutError: "nothing came for too long",
        requests.ConnectionError: "the connection failed",
    }
    return next((word for kind, word in words.items() if isinstance(error, kind)), "the connection was cut")
