"""`trajectory.json` of a pushed trajectory, which says when training was and where it ended."""

import shutil
from pathlib import Path

from emtoolkit.checkpoints.manifest import Manifest
from emtoolkit.checkpoints.trajectory_file import DamagedRecordError, TrajectoryRecord
from emtoolkit.hub.client import NoSuchFileError, asked
from emtoolkit.hub.listing import HubListing
from emtoolkit.storage.atomic import TEMPORARY


def keep_record(listing: HubListing, directory: Path, manifest: Manifest) -> None:
    """Put the record of the trajectory of `manifest` into `directory`, unless it is there.

    Where the repository has none, the record holds what the manifest tells.

    Raises:
        HubError: the hub does not answer.
    """
    try:
        kept = TrajectoryRecord.read_if_any(directory)
    except DamagedRecordError:
        kept = None
    if kept is not None and kept.fingerprint == manifest.fingerprint:
        return
    found = _downloaded(listing, directory)
    if found is None or found.fingerprint != manifest.fingerprint:
        found = TrajectoryRecord(manifest.fingerprint, manifest.total_steps, "")
    found.write(directory)


def _downloaded(listing: HubListing, directory: Path) -> TrajectoryRecord | None:
    from huggingface_hub import hf_hub_download

    if listing.record is None:
        return None
    commit, path = listing.record
    repository, place = listing.reference.repository, directory / f"{TEMPORARY}record"
    try:
        asked(str(listing.reference), lambda: hf_hub_download(repository, path, revision=commit, local_dir=place))
        return TrajectoryRecord.read_if_any((place / path).parent)
    except (NoSuchFileError, DamagedRecordError):
        return None
    finally:
        shutil.rmtree(place, ignore_errors=True)
