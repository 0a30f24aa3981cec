"""The HTTP handler of a server on loopback: faults, bodies and answers."""

import json
import re
import select
import socket
import struct
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.loopback.faults import Request

if TYPE_CHECKING:
    from tests.loopback.server import LoopbackServer

PIECE = 1 << 20


class HangUp(Exception):
    """Raised to close the connection without an answer."""


class TruncatedBody(Exception):
    """The connection ended before the announced length."""


class LoopbackHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def loopback(self) -> "LoopbackServer[Any]":
        return self.server.loopback  # type: ignore[attr-defined, no-any-return]

    def make_request(self) -> Request:
        """The request as the server records it; called before faults are applied."""
        return Request(self.command, urlsplit(self.path).path)

    def route(self) -> None:
        """Answer the request."""
        raise NotImplementedError

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error, as this kind of server words its errors."""
        raise NotImplementedError

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing, because `server.requests` records the requests."""

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_OPTIONS = do_HEAD = do_DELETE = do_GET

    def _serve(self) -> None:
        self.unread = int(self.headers.get("Content-Length") or 0)
        self._body: bytes | None = None
        self._loses_answer = False
        self._cuts_answer = False
        self._halves_answer = False
        try:
            self.request_record = self.make_request()
            self.loopback.note(self.request_record)
            if not self._struck():
                self.route()
        except (HangUp, TruncatedBody):
            self.close_connection = True

    # ---- faults

    def _struck(self) -> bool:
        """Apply a fault, if any; return whether it replaced the answer."""
        strike = self.loopback.faults.strike(self.request_record)
        if strike is None:
            return False
        match strike.kind:
            case int(status):
                self.refuse(status, f"the test server was told to answer {status}")
                return True
            case "lose_answer":
                self._loses_answer = True
                return False
            case "hang":
                while not strike.cleared.wait(0.5) and not self._client_is_gone():
                    pass
                if self.loopback.stopping.is_set() or self._client_is_gone():
                    raise HangUp
                return False
            case "html":
                self.answer(200, b"<html><body>Sign in to the network</body></html>", {"Content-Type": "text/html"})
                return True
            case "garbage":
                self.answer(200, b"\x00\xff{" * 40, {"Content-Type": "application/json"})
                return True
            case "half_answer":
                self._halves_answer = True
                return False
            case "reset":
                # Closing a socket that does not linger resets the connection.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            case "cut" if self.request_record.method == "GET":
                self._cuts_answer = True
                return False
            case "cut":
                self._skip_body(self.unread // 2)
        raise HangUp

    def _client_is_gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    # ---- bodies and answers

    def read_body(self) -> bytes:
        if self._body is None:
            self._body = self.rfile.read(self.unread)
            if len(self._body) < self.unread:
                raise TruncatedBody
            self.unread = 0
        return self._body

    def _skip_body(self, length: int) -> None:
        while length > 0 and (piece := self.rfile.read(min(PIECE, length))):
            length -= len(piece)
            self.unread -= len(piece)

    def answer_json(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        self.answer(status, json.dumps(answer).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.start_answer(status, len(body), headers or {})
        if self._halves_answer:
            self.wfile.write(body[: len(body) // 2])
            raise HangUp
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, path: Path, size: int, headers: dict[str, str]) -> None:
        """Answer with the file, or with the range of it that was asked for."""
        start, stop = 0, size
        headers = {"Accept-Ranges": "bytes"} | headers
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, stop = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else size, size)
            if start >= stop:
                self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
                return
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self.start_answer(206 if asked else 200, stop - start, headers)
        if self.command == "HEAD":
            return
        if self._cuts_answer:
            stop = start + (stop - start) // 2
        with path.open("rb") as file:
            file.seek(start)
            while start < stop:
                piece = file.read(min(PIECE, stop - start))
                self.wfile.write(piece)
                start += len(piece)
        if self._cuts_answer:
            raise HangUp

    def start_answer(self, status: int, length: int, headers: dict[str, str]) -> None:
        # What is left of the body would be taken for the next request.
        self._skip_body(self.unread)
        if self._loses_answer:
            raise HangUp
        self.loopback.note_answer(self.request_record, status)
        self.send_response(status)
        for name, value in ({"Access-Control-Allow-Origin": "*", "Content-Length": str(length)} | headers).items():
            self.send_header(name, value)
        self.end_headers()
