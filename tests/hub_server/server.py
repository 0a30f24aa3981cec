"""The server: what the hub holds, who may do what, and what its clients need to find it."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.hub_server.handler import Handler, Request
from tests.hub_server.store import Store
from tests.loopback.server import LoopbackServer

Role = Literal["write", "read"]
USER, ORGANIZATION = "tester", "lab"


@dataclass(frozen=True, slots=True)
class Account:
    user: str
    organizations: tuple[str, ...]
    role: Role

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.user, *self.organizations)


class HubServer(LoopbackServer[Request]):
    """`token` may write into the repositories of `tester` and `lab`, `read_token` of the same user may not.

    `stranger_token` is another user's.
    """

    handler = Handler

    def __init__(self, directory: Path, port: int = 0) -> None:
        super().__init__(port)
        # Contents lie on another origin, as on the hub, which must never see a token.
        self.content_url = f"http://localhost:{self.port}"
        self.store = Store(directory)
        self.token, self.read_token, self.stranger_token = (f"hf_{secrets.token_hex(16)}" for _ in range(3))
        self.accounts = {
            self.token: Account(USER, (ORGANIZATION,), "write"),
            self.read_token: Account(USER, (ORGANIZATION,), "read"),
            self.stranger_token: Account("stranger", (), "write"),
        }
        self.retry_after: int | None = None
        """The pause, in seconds, that an answer 429 or 503 asks for."""
        self.page_size = 1000
        """Entries in one answer of a listing."""

    @classmethod
    @contextmanager
    def start(cls, directory: Path, port: int = 0) -> Iterator["HubServer"]:
        server = cls(directory, port)
        server.accept_connections()
        try:
            yield server
        finally:
            server.stop()

    def environment(self) -> dict[str, str]:
        """The environment variables with which a process uses this hub only, and LFS instead of Xet."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def asked(self, *subjects: str) -> list[str]:
        """Subject and path of the requests so far with one of these subjects, or of all requests, in their order."""
        return [
            f"{request.subject} {request.path}"
            for request in self.requests
            if not subjects or request.subjects & {*subjects}
        ]

    @property
    def uploaded_bytes(self) -> int:
        """The bytes of contents that clients have sent, in LFS uploads and in commits."""
        return sum(request.uploaded for request in self.requests)
