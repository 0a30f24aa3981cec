"""A repository on the hub as a trajectory whose checkpoints are downloaded at their first use."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from emtoolkit.checkpoints.checkpoint import Checkpoint
from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.remote import BackgroundDownload, Downloaded, RemoteTrajectory
from emtoolkit.errors import CheckpointError
from emtoolkit.hub.client import OfflineError
from emtoolkit.hub.download import download_one
from emtoolkit.hub.listing import HubCheckpoint, HubListing, read_listing
from emtoolkit.hub.names import HubReference
from emtoolkit.json_files import read_json
from emtoolkit.paths import cache_dir
from emtoolkit.progress import Progress
from emtoolkit.storage.atomic import write_file
from emtoolkit.storage.digests import canonical_json

_LISTING = "listing.json"


@dataclass(frozen=True, slots=True)
class _HubSource:
    """The checkpoints of `listing`, which are kept in `cache`."""

    listing: HubListing
    cache: Path

    def download(self, steps: Collection[int], directory: Path, *, rehash: bool, progress: Progress) -> Downloaded:
        fetched, present, received = list[int](), list[int](), 0
        wanted = [checkpoint for checkpoint in self.listing.checkpoints if checkpoint.step in steps]
        for done, checkpoint in enumerate(wanted):
            progress("downloading checkpoints", done, len(wanted))
            is_cache = directory == self.cache
            size = download_one(self.listing, checkpoint, directory, is_cache=is_cache, rehash=rehash)
            (present if size is None else fetched).append(checkpoint.step)
            received += size or 0
        return Downloaded(directory, tuple(fetched), tuple(present), received)

    def fetch(self, steps: Collection[int], progress: Progress) -> Downloaded:
        return self.download(steps, self.cache, rehash=False, progress=progress)


def open_hub(reference: str, cache: Path | None) -> RemoteTrajectory:
    """The trajectory `hf:ORG/REPO`; `cache` is by default below `hub/` in emtoolkit's cache directory.

    Raises:
        CheckpointError: `reference` is not written so, the hub has no such repository or revision, does not answer, or
            has no checkpoint; or HF_HUB_OFFLINE is set, and nothing was listed before.
    """
    parsed = HubReference.parse(reference)
    directory = cache_dir() / "hub" / parsed.directory if cache is None else cache
    try:
        listing = read_listing(parsed)
        _keep(listing, directory / _LISTING)
    except OfflineError as error:
        if (kept := _kept(parsed, directory / _LISTING)) is None:
            raise error from None
        listing = kept
    checkpoints = [_checkpoint(listing, each, directory) for each in listing.checkpoints]
    return RemoteTrajectory(str(parsed), checkpoints, _HubSource(listing, directory))


def _checkpoint(listing: HubListing, remote: HubCheckpoint, cache: Path) -> Checkpoint:
    def fetch(stop: Event | None) -> bool:
        return download_one(listing, remote, cache, stop=stop) is not None

    downloading = BackgroundDownload(fetch)
    return Checkpoint(
        remote.step,
        remote.final,
        _directory=cache / checkpoint_name(remote.step),
        _reference=listing.place(remote),
        _fetch=downloading,
        _start=downloading.start,
    )


def _keep(listing: HubListing, path: Path) -> None:
    """Keep the listing for HF_HUB_OFFLINE."""
    content = canonical_json(listing.to_json())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.read_bytes() == content:
            return
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from error
    write_file(path, content)


def _kept(reference: HubReference, path: Path) -> HubListing | None:
    try:
        return HubListing.from_json(reference, read_json(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); unset HF_HUB_OFFLINE once to list anew") from error
