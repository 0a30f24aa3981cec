"""The HTTP handler: authorization and the four kinds of endpoint."""

import base64
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tests.loopback.handler import LoopbackHandler
from tests.wandb_server import file_stream
from tests.wandb_server.blobs import Blob
from tests.wandb_server.execution import execute, operation_name
from tests.wandb_server.faults import Request
from tests.wandb_server.transfers import mime_type

if TYPE_CHECKING:
    from tests.wandb_server.server import WandbServer

STREAM = re.compile(r"/files/([^/]*)/([^/]+)/([^/]+)/file_stream")
MD5 = re.compile(r"[0-9a-f]{32}")


class Handler(LoopbackHandler):
    request_record: Request

    @property
    def wandb(self) -> "WandbServer":
        return self.loopback  # type: ignore[return-value]

    def make_request(self) -> Request:
        """The request with its GraphQL operation, because faults apply to operations."""
        request = Request(self.command, urlsplit(self.path).path)
        if request.method == "POST" and request.path == "/graphql":
            self._query = json.loads(self.read_body())
            request.operation = operation_name(self._query.get("query", ""))
        return request

    def refuse(self, status: int, message: str) -> None:
        self.answer_json(status, {"errors": [{"message": message}]})

    # ---- what is asked

    def route(self) -> None:
        method, path = self.request_record.method, unquote(self.request_record.path)
        if method == "OPTIONS":
            self.answer(204, b"")
        elif path.startswith("/storage/"):
            self._storage(method, path)
        elif not self._key_is_right():
            self.refuse(401, "the API key is missing or wrong")
        elif (method, path) == ("POST", "/graphql"):
            self._graphql()
        elif method == "POST" and (stream := STREAM.fullmatch(path)):
            self._file_stream(*stream.groups())
        elif method == "GET" and path.startswith("/artifactsV2/"):
            md5 = next((part for part in path.split("/") if MD5.fullmatch(part)), "")
            self._send_blob(self.wandb.context.transfers.blobs.get(md5), path)
        else:
            self.refuse(404, f"the test server has no {method} {path}")

    def _key_is_right(self) -> bool:
        kind, _, credentials = self.headers.get("Authorization", "").partition(" ")
        wanted = f"api:{self.wandb.api_key}".encode()
        return kind == "Basic" and credentials == base64.b64encode(wanted).decode()

    def _graphql(self) -> None:
        context = self.wandb.context
        with context.store.lock:
            answer = execute(self._query["query"], self._query.get("variables"), context)
        self.answer_json(200, answer)

    def _file_stream(self, entity: str, project: str, name: str) -> None:
        store = self.wandb.store
        message = json.loads(self.read_body())
        with store.lock:
            known = store.find_project(entity, project)
            run = known.runs.get(name) if known else None
            answer = file_stream.take(run, message) if run else None
        if answer is None:
            self.refuse(404, f"no run {entity}/{project}/{name}")
        else:
            self.answer_json(200, answer)

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
            self.refuse(403, "this upload URL is not signed by this server")
            return
        blob = transfers.blobs.receive(self.rfile, self.unread)
        self.unread = 0
        if upload.digest and upload.digest not in (blob.md5, blob.xxh128):
            self.refuse(400, f"BadDigest: {upload.digest} was announced, {blob.md5} arrived")
            return
        with self.wandb.store.lock:
            upload.stored(blob)
        self.answer(200, b"", {"ETag": f'"{blob.md5}"'})

    def _send_blob(self, blob: Blob | None, path: str) -> None:
        if blob is None:
            self.refuse(404, f"no file at {path}")
            return
        self.send_file(blob.path, blob.size, {"Content-Type": mime_type(path), "ETag": f'"{blob.md5}"'})
