"""A W&B server on loopback, for the tests: what the real client asks of one, in memory, and faults to order."""

from tests.wandb_server.faults import Fault, Request
from tests.wandb_server.server import WandbServer

__all__ = ["Fault", "Request", "WandbServer"]
