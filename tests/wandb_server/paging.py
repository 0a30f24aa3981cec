"""GraphQL connections: pages, cursors, and W&B's Mongo-like filters."""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

MOST_PER_PAGE = 1000
Item = TypeVar("Item")
Lookup = Callable[[str], Any]


def page(
    items: Sequence[Any], after: str | None = None, first: int | None = None, most: int = MOST_PER_PAGE
) -> dict[str, Any]:
    """One page of items; a cursor is the number of items up to and including its own."""
    start = int(after or 0)
    end = start + min(most if first is None else first, most)
    edges = [{"cursor": str(start + i), "node": node} for i, node in enumerate(items[start:end], start=1)]
    return {
        "totalCount": len(items),
        "pageInfo": {"endCursor": edges[-1]["cursor"] if edges else None, "hasNextPage": end < len(items)},
        "edges": edges,
    }


def edges(items: Iterable[Any]) -> dict[str, Any]:
    return {"edges": [{"node": item} for item in items]}


def fitting(items: Iterable[Item], filters: Any, look_up: Callable[[Item, str], Any]) -> list[Item]:
    """The items that satisfy the filter; `look_up` returns an item's value for a key."""
    return [item for item in items if _fits(filters, partial(look_up, item))]


def _fits(filters: Any, look_up: Lookup) -> bool:
    for key, wanted in (filters or {}).items():
        if key == "$and":
            fits = all(_fits(part, look_up) for part in wanted)
        elif key == "$or":
            fits = any(_fits(part, look_up) for part in wanted)
        elif key == "$not":
            fits = not _fits(wanted, look_up)
        elif key.startswith("$"):
            raise ValueError(f"filter operator {key} is not implemented")
        else:
            fits = _satisfies(look_up(key), wanted)
        if not fits:
            return False
    return True


def _satisfies(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict) and any(key.startswith("$") for key in wanted):
        return all(_compare(value, operator, operand) for operator, operand in wanted.items())
    return wanted in value if isinstance(value, list) and not isinstance(wanted, list) else bool(value == wanted)


def _compare(value: Any, operator: str, operand: Any) -> bool:
    match operator:
        case "$eq":
            return _satisfies(value, operand)
        case "$ne":
            return not _satisfies(value, operand)
        case "$in":
            return any(_satisfies(value, one) for one in operand)
        case "$nin":
            return not any(_satisfies(value, one) for one in operand)
        case "$exists":
            return (value is not None) is bool(operand)
        case "$not":
            return not _satisfies(value, operand)
        case "$regex":
            return value is not None and re.search(operand, str(value)) is not None
    if value is None:
        return False
    match operator:
        case "$gt":
            return bool(value > operand)
        case "$gte":
            return bool(value >= operand)
        case "$lt":
            return bool(value < operand)
        case "$lte":
            return bool(value <= operand)
    raise ValueError(f"filter operator {operator} is not implemented")


def ordered(items: Iterable[Item], order: str | None, look_up: Callable[[Item, str], Any]) -> list[Item]:
    """Sort by `+key` or `-key`; items without the key come last. Without an order, the sequence is unchanged."""
    result = list(items)
    for term in reversed((order or "").split(",")):
        if key := term.lstrip("+-"):
            have = [item for item in result if look_up(item, key) is not None]
            lack = [item for item in result if look_up(item, key) is None]
            result = sorted(have, key=lambda item: look_up(item, key), reverse=term.startswith("-")) + lack
    return result


def inside(tree: Any, path: str) -> Any:
    """`tree["a"]["b"]` for `a.b`; None if a key is missing."""
    for key in path.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return None
        tree = tree[key]
    return tree
