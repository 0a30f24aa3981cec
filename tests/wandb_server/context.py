"""The objects that resolvers use."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from graphql import GraphQLResolveInfo

from tests.wandb_server.store import Store
from tests.wandb_server.transfers import Transfers

Info = GraphQLResolveInfo
Answer = dict[str, Any]
XXHASH_ENABLED = "xxhashDigestsEnabled"


@dataclass(frozen=True, slots=True)
class Context:
    store: Store
    transfers: Transfers
    features: Collection[str]
    """The features that the server announces, and perhaps `XXHASH_ENABLED`, a setting of its entity."""


def store_of(info: Info) -> Store:
    context: Context = info.context
    return context.store


def features_of(info: Info) -> Collection[str]:
    context: Context = info.context
    return context.features


def transfers_of(info: Info) -> Transfers:
    context: Context = info.context
    return context.transfers
