"""Versions of W&B's collections by their names."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from emtoolkit.artifacts.retries import retried

# W&B's client asks for 50; the server allows more, so that 300 checkpoints take three requests.
PER_PAGE = 100


def all_of(paginator: Iterable[Any]) -> list[Any]:
    """Every item of a paginator of W&B's client.

    `list` would ask the paginator for its length, which raises an error unless the server counts files
    (`TOTAL_COUNT_IN_FILE_CONNECTION`).
    """
    return [item for item in paginator]  # noqa: C416 - `list` asks for the length


def all_versions(api: Any, name: str) -> list[Any]:
    """Every version of the collection `entity/project/collection`, the newest first.

    Raises:
        ValueError: there is no such collection.
        Exception: whatever W&B's client raises if the server does not answer.
    """
    return retried(lambda: all_of(api.artifacts(type_name="model", name=name, per_page=PER_PAGE)))


def find_version(api: Any, name: str) -> Any:
    """The version `entity/project/collection:alias`; None if the server answers that there is none.

    Raises:
        Exception: whatever W&B's client raises if the server does not answer.
    """
    import wandb

    try:
        return retried(lambda: api.artifact(name))
    except (wandb.errors.CommError, ValueError) as error:
        # The client reports a null in the answer as a plain ValueError, and most times wraps it.
        if type(getattr(error, "exc", error)) is ValueError:
            return None
        raise


def find_versions(api: Any, names: Iterable[str]) -> dict[str, Any]:
    """Those of the versions `entity/project/collection:vN` that W&B has, by their names.

    W&B is asked once for up to 100 versions of a collection, and not for each version.

    Raises:
        Exception: whatever W&B's client raises if the server does not answer.
    """
    wanted: dict[str, set[str]] = defaultdict(set)
    for name in names:
        wanted[name.rpartition(":")[0]].add(name)
    found: dict[str, Any] = {}
    for collection, versions in wanted.items():
        try:
            listed = all_versions(api, collection)
        except ValueError as error:
            if type(error) is not ValueError:
                raise
            continue  # The collection is gone.
        found |= {version.qualified_name: version for version in listed if version.qualified_name in versions}
    return found
