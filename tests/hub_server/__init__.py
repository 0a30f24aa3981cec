"""A Hugging Face hub on loopback for tests: answers the real client from memory, and fails on request."""

from tests.hub_server.server import HubServer
from tests.hub_server.store import Repository
from tests.loopback.faults import Fault

__all__ = ["Fault", "HubServer", "Repository"]
