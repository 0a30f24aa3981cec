"""The objects that resolvers use."""

from dataclasses import dataclass
from typing import Any

from graphql import GraphQLResolveInfo

from tests.wandb_server.store import Store
from tests.wandb_server.transfers import Transfers

Info = GraphQLResolveInfo
Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Context:
    store: Store
    transfers: Transfers


def store_of(info: Info) -> Store:
    context: Context = info.context
    return context.store


def transfers_of(info: Info) -> Transfers:
    context: Context = info.context
    return context.transfers
