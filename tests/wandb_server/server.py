"""The server: runs on a free port, records requests, injects faults, and can refuse connections."""

import secrets
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

from tests.processes import HANG_SECONDS
from tests.wandb_server.blobs import Blobs
from tests.wandb_server.context import XXHASH_ENABLED, Context
from tests.wandb_server.faults import Faults, Request
from tests.wandb_server.handler import Handler
from tests.wandb_server.store import ENTITY, Store
from tests.wandb_server.transfers import Transfers

# What wandb.ai advertises and this server does. XXH128 is apart, as most tests compute MD5.
FEATURES = (
    "LARGE_FILENAMES",
    "ARTIFACT_TAGS",
    "CLIENT_IDS",
    "ARTIFACT_COLLECTION_MEMBERSHIP_FILES",
    "ARTIFACT_COLLECTION_MEMBERSHIP_FILE_DOWNLOAD_HANDLER",
    "USE_ARTIFACT_WITH_ENTITY_AND_PROJECT_INFORMATION",
    "PROJECT_ARTIFACT_COLLECTION_MEMBERSHIP",
    "ARTIFACT_MEMBERSHIP_IN_LINK_ARTIFACT_RESPONSE",
    "TOTAL_COUNT_IN_FILE_CONNECTION",
    "ARTIFACT_COLLECTIONS_FILTERING_SORTING",
)
XXH128 = ("ARTIFACT_DIGEST_ALGORITHM", XXHASH_ENABLED)


class WandbServer:
    entity = ENTITY

    def __init__(self, directory: Path, port: int = 0, features: Collection[str] = FEATURES) -> None:
        self._reserved = _reserve(port)
        self.port: int = self._reserved.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.api_key = secrets.token_hex(20)
        self.store = Store()
        self.faults = Faults()
        self.requests: list[Request] = []
        self._arrival = threading.Condition()
        self.stopping = threading.Event()
        self.context = Context(self.store, Transfers(Blobs(directory), self.url), features)
        self._listener: _Listener | None = None

    @classmethod
    @contextmanager
    def start(cls, directory: Path, port: int = 0, features: Collection[str] = FEATURES) -> Iterator["WandbServer"]:
        server = cls(directory, port, features)
        server.accept_connections()
        try:
            yield server
        finally:
            server.stop()

    def environment(self) -> dict[str, str]:
        """The environment variables with which a process uses this server only."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": self.api_key,
            "WANDB_ENTITY": self.entity,
            "WANDB_MODE": "online",
            "WANDB_ERROR_REPORTING": "false",
        }

    def note(self, request: Request) -> None:
        with self._arrival:
            self.requests.append(request)
            self._arrival.notify_all()

    def wait_for_requests(self, count: int, of: Callable[[Request], bool], within: float = HANG_SECONDS) -> None:
        """Wait until `count` requests that fulfil `of` have arrived."""
        with self._arrival:
            assert self._arrival.wait_for(lambda: sum(map(of, self.requests)) >= count, within)

    def clear_requests(self) -> None:
        self.requests.clear()

    def accept_connections(self) -> None:
        if self._listener is None:
            self._listener = _Listener(self, self._reserved)

    def refuse_connections(self) -> None:
        """Close the listening socket and every connection; the port stays reserved for `accept_connections`."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._reserved = _reserve(self.port)

    def stop(self) -> None:
        self.stopping.set()
        self.refuse_connections()
        self.faults.clear()
        self._reserved.close()


def _reserve(port: int) -> socket.socket:
    """A socket that is bound but does not listen: connections are refused, and the port stays reserved."""
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", port))
    return reserved


class _Listener(ThreadingHTTPServer):
    """Serves on a bound socket, in daemon threads."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, server: WandbServer, bound: socket.socket) -> None:
        super().__init__(bound.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound
        self.wandb = server
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.server_activate()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            _hang_up(connection)

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Print a traceback, except if the client disconnected during the answer."""
        import sys

        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        # The client was faster.
        return
