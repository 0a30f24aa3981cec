"""The server: what it holds, and what its clients need to find it."""

import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.loopback.server import LoopbackServer
from tests.wandb_server.blobs import Blobs
from tests.wandb_server.context import XXHASH_ENABLED, Context
from tests.wandb_server.faults import Request
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


class WandbServer(LoopbackServer[Request]):
    handler = Handler
    entity = ENTITY

    def __init__(self, directory: Path, port: int = 0, features: Collection[str] = FEATURES) -> None:
        super().__init__(port)
        self.api_key = secrets.token_hex(20)
        self.store = Store()
        self.context = Context(self.store, Transfers(Blobs(directory), self.url), features)

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
