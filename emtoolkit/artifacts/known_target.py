"""The place on W&B that a directory published to, or would publish to."""

from collections.abc import Sequence
from pathlib import Path

from emtoolkit.artifacts.names import COLLECTION
from emtoolkit.checkpoints.listing import CheckpointInfo
from emtoolkit.checkpoints.publications import Publications

_PROJECT = "emtoolkit"


def known_target(
    directory: Path, publications: Publications, checkpoints: Sequence[CheckpointInfo]
) -> tuple[str, str, str]:
    """Entity, project and collection: of the newest run, else of a download, else from the directory's name."""
    if publications.newest_run is not None:
        entity, project, collection = publications.newest_run.entity, publications.newest_run.project, None
    elif publications.published:
        artifact = next(iter(publications.published.values())).artifact
        entity, project, collection = artifact.rpartition(":")[0].split("/")
    else:
        entity, project, collection = "", _PROJECT, None
    fingerprint = (checkpoints[0].fingerprint if checkpoints else None) or ""
    own = COLLECTION.fit(directory.resolve().name, f"-{fingerprint[:8]}")
    return entity, project, publications.collection or collection or own
