"""A collection on W&B as a trajectory whose checkpoints are downloaded at their first use."""

from collections.abc import Collection as Steps
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from emtoolkit.artifacts.checkpoint_download import checkpoint_path
from emtoolkit.artifacts.collection import Collection, RemoteCheckpoint
from emtoolkit.artifacts.download import download, download_one
from emtoolkit.artifacts.mixture import check_is_one_training, without_interruptions
from emtoolkit.artifacts.named_collection import named_collection
from emtoolkit.artifacts.version_removal import recorded_as_pruned
from emtoolkit.checkpoints.checkpoint import Checkpoint
from emtoolkit.checkpoints.remote import BackgroundDownload, Downloaded, RemoteTrajectory
from emtoolkit.paths import cache_dir
from emtoolkit.progress import Progress


@dataclass(frozen=True, slots=True)
class _CollectionSource:
    """`collection`, whose checkpoints are kept in `cache`."""

    collection: Collection
    cache: Path

    def download(self, steps: Steps[int], directory: Path, *, rehash: bool, progress: Progress) -> Downloaded:
        return download(self.collection, self._of(steps), directory, rehash=rehash, progress=progress)

    def fetch(self, steps: Steps[int], progress: Progress) -> Downloaded:
        return download(self.collection, self._of(steps), self.cache, wait=True, progress=progress)

    def _of(self, steps: Steps[int]) -> list[RemoteCheckpoint]:
        return [remote for remote in self.collection.checkpoints if remote.step in steps]


def open_collection(reference: str, cache: Path | None, *, interrupted: bool) -> RemoteTrajectory:
    """The collection `entity/project/collection`; `cache` is by default `downloads/` in emtoolkit's cache directory.

    Raises:
        CheckpointError: the collection does not exist or mixes several trainings, or W&B cannot be asked.
    """
    collection = named_collection(reference)
    directory = cache_dir() / "downloads" / collection.name if cache is None else cache
    collection = collection if interrupted else without_interruptions(collection)
    check_is_one_training(collection)
    checkpoints = [_checkpoint(collection, remote, directory) for remote in collection.checkpoints]
    source = _CollectionSource(collection, directory)
    return RemoteTrajectory(collection.name, checkpoints, source, recorded_as_pruned(collection))


def _checkpoint(collection: Collection, remote: RemoteCheckpoint, cache: Path) -> Checkpoint:
    def fetch(stop: Event | None) -> bool:
        return download_one(collection, remote, cache, stop=stop)

    downloading = BackgroundDownload(fetch)
    return Checkpoint(
        remote.step,
        remote.final,
        remote.metadata,
        _directory=checkpoint_path(cache, remote),
        _reference=remote.artifact,
        _published=remote.artifact,
        _fetch=downloading,
        _start=downloading.start,
    )
