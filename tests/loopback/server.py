"""A server on loopback: runs on a free port, records requests, injects faults, and can refuse connections."""

import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Generic, TypeVar

from tests.loopback.faults import Faults, Request
from tests.processes import HANG_SECONDS

AnyRequest = TypeVar("AnyRequest", bound=Request)


class LoopbackServer(Generic[AnyRequest]):
    handler: ClassVar[type[BaseHTTPRequestHandler]]

    def __init__(self, port: int = 0) -> None:
        self._reserved = _reserve(port)
        self.port: int = self._reserved.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.faults = Faults()
        self.requests: list[AnyRequest] = []
        self._arrival = threading.Condition()
        self.stopping = threading.Event()
        self._listener: _Listener | None = None

    def note(self, request: AnyRequest) -> None:
        with self._arrival:
            self.requests.append(request)
            self._arrival.notify_all()

    def note_answer(self, request: AnyRequest, status: int) -> None:
        with self._arrival:
            request.status = status
            self._arrival.notify_all()

    def wait_for_requests(self, count: int, of: Callable[[AnyRequest], bool], within: float = HANG_SECONDS) -> None:
        """Wait until `count` requests that fulfil `of` have arrived."""
        self.wait_until(lambda: sum(map(of, self.requests)) >= count, within)

    def wait_until(self, happens: Callable[[], bool], within: float = HANG_SECONDS) -> None:
        """Wait until `happens`, which is looked at when a request has arrived and when its answer is ready."""
        with self._arrival:
            assert self._arrival.wait_for(happens, within)

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

    def __init__(self, server: LoopbackServer[Any], bound: socket.socket) -> None:
        super().__init__(bound.getsockname(), server.handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound
        self.loopback = server
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
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        # The client was faster.
        return
