"""What the W&B server holds of the tiny config's run, which saves steps 0, 2, 4 and 9."""

from tests.wandb_server import WandbServer

EVERYTHING = [(0, ["step-0"]), (1, ["step-2"]), (2, ["step-4"]), (3, ["final", "latest", "step-9"])]


def versions(server: WandbServer, collection: str | None = None) -> list[tuple[int, list[str]]]:
    """Index and aliases of every version in `collection`, or in all collections, of project `tests`."""
    collections = server.store.project(server.entity, "tests").collections
    return [
        (version.index, sorted(version.aliases))
        for name, held in collections.items()
        if collection in (None, name)
        for version in held.versions
    ]
