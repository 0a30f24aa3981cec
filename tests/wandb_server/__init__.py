"""A W&B server on loopback for tests: answers the real client from memory, and fails on request."""

from tests.wandb_server.faults import Fault, Request
from tests.wandb_server.server import FEATURES, XXH128, WandbServer

__all__ = ["FEATURES", "XXH128", "Fault", "Request", "WandbServer"]
