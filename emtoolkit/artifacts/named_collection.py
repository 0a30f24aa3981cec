"""The collection that a command names where a directory could have been meant."""

from pathlib import Path

from emtoolkit.artifacts.collection import Collection, Reference, WandbUnavailableError
from emtoolkit.errors import CheckpointError


def named_collection(reference: str) -> Collection:
    """The collection `entity/project/collection`; `reference` is no directory.

    Raises:
        CheckpointError: `reference` is a file, the collection does not exist, or W&B cannot be asked.
    """
    if Path(reference).exists():
        raise CheckpointError(f"{reference}: is a file; give the directory of a run, or a collection on W&B")
    try:
        return Collection.read(Reference.parse(reference))
    except WandbUnavailableError as error:
        raise CheckpointError(f"{reference}: there is no such directory, and {error}") from error
