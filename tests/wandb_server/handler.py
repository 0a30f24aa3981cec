"""The HTTP handler: authorization, faults, and the four kinds of endpoint."""

import base64
import json
import re
import select
import socket
import struct
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from tests.wandb_server import file_stream
from tests.wandb_server.blobs import CHUNK, Blob, TruncatedBody
from tests.wandb_server.execution import execute, operation_name
from tests.wandb_server.faults import Request
from tests.wandb_server.transfers import mime_type

if TYPE_CHECKING:
    from tests.wandb_server.server import WandbServer

STREAM = re.compile(r"/files/([^/]*)/([^/]+)/([^/]+)/file_stream")
MD5 = re.compile(r"[0-9a-f]{32}")


class HangUp(Exception):
    """Raised to close the connection without an answer."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def wandb(self) -> "WandbServer":
        return self.server.wandb  # type: ignore[attr-defined, no-any-return]

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing, because `server.requests` records the requests."""

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_OPTIONS = do_HEAD = do_GET

    def _serve(self) -> None:
        self._request = Request(self.command, urlsplit(self.path).path)
        self._length = int(self.headers.get("Content-Length") or 0)
        self._body: bytes | None = None
        self._loses_answer = False
        self._cuts_answer = False
        self._halves_answer = False
        try:
            self._note_operation()
            self.wandb.note(self._request)
            if not self._struck():
                self._route()
        except (HangUp, TruncatedBody):
            self.close_connection = True

    def _note_operation(self) -> None:
        """The GraphQL body, read first because faults apply to operations."""
        if self._request.method == "POST" and self._request.path == "/graphql":
            self._query = json.loads(self._read_body())
            self._request.operation = operation_name(self._query.get("query", ""))

    # ---- faults

    def _struck(self) -> bool:
        """Apply a fault, if any; return whether it replaced the answer."""
        strike = self.wandb.faults.strike(self._request)
        if strike is None:
            return False
        match strike.kind:
            case int(status):
                self._refuse(status, f"the test server was told to answer {status}")
                return True
            case "lose_answer":
                self._loses_answer = True
                return False
            case "hang":
                while not strike.cleared.wait(0.5) and not self._client_is_gone():
                    pass
                if self.wandb.stopping.is_set() or self._client_is_gone():
                    raise HangUp
                return False
            case "html":
                self._answer(200, b"<html><body>Sign in to the network</body></html>", {"Content-Type": "text/html"})
                return True
            case "garbage":
                self._answer(200, b"\x00\xff{" * 40, {"Content-Type": "application/json"})
                return True
            case "half_answer":
                self._halves_answer = True
                return False
            case "reset":
                # Closing a socket that does not linger resets the connection.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            case "cut" if self._request.method == "GET":
                self._cuts_answer = True
                return False
            case "cut":
                self._skip_body(self._length // 2)
        raise HangUp

    def _client_is_gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    # ---- what is asked

    def _route(self) -> None:
        method, path = self._request.method, unquote(self._request.path)
        if method == "OPTIONS":
            self._answer(204, b"")
        elif path.startswith("/storage/"):
            self._storage(method, path)
        elif not self._key_is_right():
            self._refuse(401, "the API key is missing or wrong")
        elif (method, path) == ("POST", "/graphql"):
            self._graphql()
        elif method == "POST" and (stream := STREAM.fullmatch(path)):
            self._file_stream(*stream.groups())
        elif method == "GET" and path.startswith("/artifactsV2/"):
            md5 = next((part for part in path.split("/") if MD5.fullmatch(part)), "")
            self._send_blob(self.wandb.context.transfers.blobs.get(md5), path)
        else:
            self._refuse(404, f"the test server has no {method} {path}")

    def _key_is_right(self) -> bool:
        kind, _, credentials = self.headers.get("Authorization", "").partition(" ")
        wanted = f"api:{self.wandb.api_key}".encode()
        return kind == "Basic" and credentials == base64.b64encode(wanted).decode()

    def _graphql(self) -> None:
        context = self.wandb.context
        with context.store.lock:
            answer = execute(self._query["query"], self._query.get("variables"), context)
        self._answer_json(200, answer)

    def _file_stream(self, entity: str, project: str, name: str) -> None:
        store = self.wandb.store
        message = json.loads(self._read_body())
        with store.lock:
            known = store.find_project(entity, project)
            run = known.runs.get(name) if known else None
            answer = file_stream.take(run, message) if run else None
        if answer is None:
            self._refuse(404, f"no run {entity}/{project}/{name}")
        else:
            self._answer_json(200, answer)

    def _storage(self, method: str, path: str) -> None:
        transfers = self.wandb.context.transfers
        token, _, rest = path.removeprefix("/storage/").partition("/")
        if method == "PUT":
            self._receive(token)
        else:
            self._send_blob(transfers.download(token, rest.partition("/")[0]), path)

    # ---- file contents

    def _receive(self, token: str) -> None:
        transfers = self.wandb.context.transfers
        upload = transfers.upload(token)
        if upload is None:
            self._refuse(403, "this upload URL is not signed by this server")
            return
        blob = transfers.blobs.receive(self.rfile, self._length)
        self._length = 0
        if upload.digest and upload.digest not in (blob.md5, blob.xxh128):
            self._refuse(400, f"BadDigest: {upload.digest} was announced, {blob.md5} arrived")
            return
        with self.wandb.store.lock:
            upload.stored(blob)
        self._answer(200, b"", {"ETag": f'"{blob.md5}"'})

    def _send_blob(self, blob: Blob | None, path: str) -> None:
        if blob is None:
            self._refuse(404, f"no file at {path}")
            return
        start, stop = 0, blob.size
        headers = {"Content-Type": mime_type(path), "Accept-Ranges": "bytes", "ETag": f'"{blob.md5}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, stop = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else blob.size, blob.size)
            if start >= stop:
                self._answer(416, b"", {"Content-Range": f"bytes */{blob.size}"})
                return
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        self._start_answer(206 if asked else 200, stop - start, headers)
        if self._request.method == "HEAD":
            return
        if self._cuts_answer:
            stop = start + (stop - start) // 2
        with blob.path.open("rb") as file:
            file.seek(start)
            while start < stop:
                piece = file.read(min(CHUNK, stop - start))
                self.wfile.write(piece)
                start += len(piece)
        if self._cuts_answer:
            raise HangUp

    # ---- bodies and answers

    def _read_body(self) -> bytes:
        if self._body is None:
            self._body = self.rfile.read(self._length)
            if len(self._body) < self._length:
                raise TruncatedBody
            self._length = 0
        return self._body

    def _skip_body(self, length: int) -> None:
        while length > 0 and (piece := self.rfile.read(min(CHUNK, length))):
            length -= len(piece)
            self._length -= len(piece)

    def _refuse(self, status: int, message: str) -> None:
        self._answer_json(status, {"errors": [{"message": message}]})

    def _answer_json(self, status: int, answer: Any) -> None:
        self._answer(status, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._start_answer(status, len(body), headers or {})
        if self._halves_answer:
            self.wfile.write(body[: len(body) // 2])
            raise HangUp
        self.wfile.write(body)

    def _start_answer(self, status: int, length: int, headers: dict[str, str]) -> None:
        # What is left of the body would be taken for the next request.
        self._skip_body(self._length)
        if self._loses_answer:
            raise HangUp
        self._request.status = status
        self.send_response(status)
        for name, value in ({"Access-Control-Allow-Origin": "*", "Content-Length": str(length)} | headers).items():
            self.send_header(name, value)
        self.end_headers()
