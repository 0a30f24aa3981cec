"""Safe download of one checkpoint from the hub; nothing is unpickled.

The files arrive in a temporary directory, which an interrupted download leaves behind and the next one continues. The
checkpoint's directory appears under its final name only after every file has the digest that the hub declares and, for
a checkpoint of emtoolkit, the one in its manifest.
"""

import hashlib
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Event

from emtoolkit.checkpoints.arriving import LOADABLE, read_arriving
from emtoolkit.checkpoints.declared import ORIGIN, Origin, manifest_in
from emtoolkit.checkpoints.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MODEL_INDEX, MODEL_WEIGHTS, checkpoint_name
from emtoolkit.checkpoints.listing import check_belongs_to, list_checkpoints
from emtoolkit.checkpoints.manifest import LARGEST_MANIFEST, MANIFEST, Manifest
from emtoolkit.checkpoints.remote import Cancelled, RefusedError
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.hub.client import HubError, asked, quiet
from emtoolkit.hub.listing import HubCheckpoint, HubFile, HubListing, holds_weights, list_files
from emtoolkit.hub.record import keep_record
from emtoolkit.storage.atomic import TEMPORARY, write_directory
from emtoolkit.storage.digests import FileDigest
from emtoolkit.storage.free_space import check_room
from emtoolkit.storage.lock import lock_directory
from emtoolkit.storage.safe_paths import is_plain_below, why_unsafe

# The time limit for another process that downloads into the same directory, in seconds.
_LOCK_SECONDS = 600.0
# Content that is wrong this often is what the hub holds.
_WRONG_ANSWERS = 2
_SHARD = re.compile(r"model-[0-9]+-of-[0-9]+\.safetensors")
_CHUNK = 2**20
_ADVICE = "choose fewer steps or another disk"
_PARTIAL = f"{TEMPORARY}arriving-"


def is_present(directory: Path, checkpoint: HubCheckpoint, *, rehash: bool = False) -> bool:
    """Whether `directory` holds what the hub lists for `checkpoint`; the files are hashed only with `rehash`."""
    path = directory / checkpoint_name(checkpoint.step)
    try:
        origin, manifest = Origin.read_if_any(path), manifest_in(path)
    except CheckpointError:
        return False
    if origin is None or manifest is None or not _is_of(origin, checkpoint):
        return False
    return manifest.step == checkpoint.step and not manifest.problems(path, rehash=rehash)


def download_one(
    listing: HubListing,
    checkpoint: HubCheckpoint,
    directory: Path,
    *,
    is_cache: bool = True,
    rehash: bool = False,
    stop: Event | None = None,
) -> int | None:
    """Download `checkpoint` into `directory`; return the bytes of its files, None if it was present.

    A cache may hold checkpoints that the repository no longer has; any other directory holds one trajectory.

    Raises:
        RefusedError: the checkpoint is unsafe, or cannot be loaded without unpickling.
        HubError: the hub refuses or fails; the same call continues the download.
        CheckpointError: `directory` holds another trajectory, or the disk is full.
        Cancelled: `stop` was set.
    """
    if is_present(directory, checkpoint, rehash=rehash):
        return None
    lock = lock_directory(directory, timeout=_LOCK_SECONDS)
    try:
        if is_present(directory, checkpoint, rehash=rehash):
            return None
        with quiet():
            return _receive(listing, checkpoint, directory, stop or Event(), is_cache=is_cache)
    except OSError as error:
        raise CheckpointError(f"{directory}: writing failed ({error.strerror or error})") from error
    finally:
        lock.release()


def _is_of(origin: Origin, checkpoint: HubCheckpoint) -> bool:
    """Whether the hub still has the files of `origin` as those of `checkpoint`."""
    if origin.commit == checkpoint.commit and origin.folder == checkpoint.folder:
        return True
    # A later commit, such as one of a model card, leaves the files as they are.
    declared = {file.path: file.declared for file in checkpoint.files or ()}
    return all(declared.get(_below(checkpoint.folder, name)) == digest for name, digest in origin.declared.items())


def _receive(
    listing: HubListing, checkpoint: HubCheckpoint, directory: Path, stop: Event, *, is_cache: bool
) -> int | None:
    place, path = listing.place(checkpoint), directory / checkpoint_name(checkpoint.step)
    if path.is_symlink():
        raise CheckpointError(f"{path}: the path is a symlink, which downloads do not follow; remove the symlink")
    files = _files_of(listing, checkpoint, place)
    # The commit in the name keeps the files of two versions apart.
    partial_directory = directory / f"{_PARTIAL}{path.name}-{checkpoint.commit[:16]}"
    if partial_directory.is_symlink():
        partial_directory.unlink()
    partial_directory.mkdir(exist_ok=True)
    partial_files = _PartialFiles(listing, checkpoint, partial_directory, stop)
    try:
        manifest = partial_files.manifest(files)
        fingerprint = listing.fingerprint if manifest is None else manifest.fingerprint
        _check_one_training(listing, checkpoint.step, fingerprint, directory, is_cache=is_cache)
        if manifest is not None and _holds(path, manifest):
            shutil.rmtree(partial_directory)
            return None
        names = partial_files.receive(files, manifest)
    except HubError:
        raise  # the same download goes on later
    except CheckpointError:
        shutil.rmtree(partial_directory)
        raise
    if manifest is not None:
        keep_record(listing, directory, manifest)
    size = sum(files[name].bytes for name in names)
    write_directory(path, lambda target: _move([*names, ORIGIN], partial_files.source, target), size)
    for left_over in directory.glob(f"{_PARTIAL}{path.name}-*"):
        # A symlink does not come from a download, and is not deleted: its target may be anything.
        if not left_over.is_symlink():
            shutil.rmtree(left_over)
    return size


def _holds(path: Path, manifest: Manifest) -> bool:
    """Whether a run, or a download from elsewhere, has put the same checkpoint into the directory `path`."""
    try:
        return Manifest.read(path) == manifest and not manifest.problems(path, rehash=True)
    except CheckpointError:
        return False


def _files_of(listing: HubListing, checkpoint: HubCheckpoint, place: str) -> dict[str, HubFile]:
    """The files of `checkpoint` by their names below its directory."""
    files = checkpoint.files
    if files is None:
        files = list_files(listing.reference.repository, checkpoint.commit, place)
    start = _below(checkpoint.folder, "")
    return {file.path.removeprefix(start): file for file in files if file.path.startswith(start)}


class _PartialFiles:
    """The files of one checkpoint, which the hub's client puts below `directory` as they lie in the repository."""

    def __init__(self, listing: HubListing, checkpoint: HubCheckpoint, directory: Path, stop: Event) -> None:
        self._listing, self._checkpoint, self._place = listing, checkpoint, listing.place(checkpoint)
        self._directory, self._stop = directory, stop
        self.source = directory / checkpoint.folder

    def manifest(self, files: Mapping[str, HubFile]) -> Manifest | None:
        """The manifest of the checkpoint with these files, downloaded first; None for another tool's checkpoint.

        Raises:
            RefusedError: it is damaged, of another step, or lists what is not there.
        """
        if MANIFEST not in files:
            return None
        if files[MANIFEST].bytes > LARGEST_MANIFEST:
            raise RefusedError(f"{self._place}/{MANIFEST}: a size of {files[MANIFEST].bytes:,} bytes is refused")
        self._fetch(MANIFEST, files[MANIFEST])
        sizes, step = {name: file.bytes for name, file in files.items()}, self._checkpoint.step
        return read_arriving(self.source, self._place, step, sizes, f"and is named as step {step}", "the hub")

    def receive(self, files: Mapping[str, HubFile], manifest: Manifest | None) -> list[str]:
        """Download what the checkpoint is loaded from, verify it, record its origin, and return the names."""
        names = _loadable(self._place, files) if manifest is None else [MANIFEST, *manifest.files]
        check_room(self._directory, sum(files[name].bytes for name in names), "the files of 1 checkpoint", _ADVICE)
        digests = {name: self._fetch(name, files[name]) for name in names}
        expected = {} if manifest is None else manifest.files
        if wrong := sorted(name for name, digest in expected.items() if digests[name] != digest):
            raise RefusedError(f"{self._place}: {wrong[0]}: its content does not match the digest in the manifest")
        origin = Origin(
            repository=self._listing.reference.repository,
            training=self._listing.training,
            revision=self._checkpoint.revision,
            commit=self._checkpoint.commit,
            folder=self._checkpoint.folder,
            step=self._checkpoint.step,
            declared={name: files[name].declared for name in names},
            files=digests,
        )
        (self.source / ORIGIN).write_bytes(origin.to_json())
        return names

    def _fetch(self, name: str, file: HubFile) -> FileDigest:
        """Download one file, again if its content is not what the hub declares."""
        from huggingface_hub import hf_hub_download

        place, path = f"{self._place}: {name}", self._directory / file.path
        if (why := why_unsafe(file.path)) or not is_plain_below(self._directory, file.path):
            raise RefusedError(f"{place}: the file name is refused, because {why or 'a symlink is in its way'}")
        for attempt in range(_WRONG_ANSWERS):
            if self._stop.is_set():
                raise Cancelled
            download = partial(
                hf_hub_download,
                self._listing.reference.repository,
                file.path,
                revision=self._checkpoint.commit,
                local_dir=self._directory,
                force_download=attempt > 0,
            )
            asked(self._place, download)
            digest = FileDigest.of(path)
            if digest.bytes == file.bytes and file.declared == (digest.sha256 if file.sha256 else _git_blob(path)):
                return digest
        raise RefusedError(f"{place}: the content does not have the digest {file.declared[:8]} that the hub declares")


def _loadable(place: str, files: Mapping[str, HubFile]) -> list[str]:
    """The names of the files from which another tool's checkpoint is loaded: its weights, and texts beside them."""
    beside = [name for name in files if "/" not in name]
    weights, config = _weights(beside), ADAPTER_CONFIG if ADAPTER_CONFIG in beside else "config.json"
    if not weights:
        pickled = sorted(name for name in beside if holds_weights(name))
        if pickled:
            raise RefusedError(
                f"{place}: its weights are only in {', '.join(pickled[:3])}, and loading these could execute code; "
                "emtoolkit reads only safetensors"
            )
        raise RefusedError(f"{place}: holds no {ADAPTER_WEIGHTS} and no {MODEL_WEIGHTS}, so there are no weights")
    if config not in beside:
        raise RefusedError(f"{place}: has no {config}, without which its weights cannot be loaded")
    texts = [name for name in beside if PurePosixPath(name).suffix.lower() in LOADABLE - {".safetensors"}]
    return sorted({*weights, *texts} - {ORIGIN})


def _weights(names: Collection[str]) -> list[str]:
    """Those of `names` that PEFT or transformers would take the weights from."""
    if ADAPTER_CONFIG in names:
        return [ADAPTER_WEIGHTS] if ADAPTER_WEIGHTS in names else []
    if MODEL_WEIGHTS in names:
        return [MODEL_WEIGHTS]
    return [name for name in names if _SHARD.fullmatch(name)] if MODEL_INDEX in names else []


def _check_one_training(listing: HubListing, step: int, fingerprint: str, directory: Path, *, is_cache: bool) -> None:
    """Check that `step` has the fingerprint of the others in `directory`; in a cache of those that the hub still has.

    Raises:
        RefusedError: the repository mixes several trainings.
        CheckpointError: `directory` holds another one.
    """
    if not is_cache:
        others = [info for info in list_checkpoints(directory) if info.step != step]
        check_belongs_to(directory, TrajectoryRecord.read_if_any(directory), others, fingerprint, {})
    for other in listing.checkpoints:
        if other.step == step or not is_present(directory, other):
            continue
        found = manifest_in(directory / checkpoint_name(other.step))
        if found is not None and found.fingerprint != fingerprint:
            raise RefusedError(
                f"{listing.reference}: mixes several trajectories: step {step} belongs to {fingerprint[:8]}, "
                f"step {other.step} to {found.fingerprint[:8]}"
            )
        return  # which was compared with the others when it arrived


def _git_blob(path: Path) -> str:
    """The SHA-1 by which git knows the content of the file `path`."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _move(names: Iterable[str], source: Path, target: Path) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).rename(target / name)
