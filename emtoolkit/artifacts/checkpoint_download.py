"""One checkpoint of a collection into its place in a local directory, if it can be trusted; nothing is unpickled.

It arrives in a temporary directory beside its place, which an interrupted download leaves and the next one continues.
It gets its name when its own manifest agrees with every byte.
"""

import hashlib
import logging
import shutil
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from emtoolkit.artifacts.collection import Collection, RefusedError, RemoteCheckpoint, RemoteFile
from emtoolkit.artifacts.file_transfer import Transfer
from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.listing import check_belongs_to, list_checkpoints
from emtoolkit.checkpoints.manifest import MANIFEST, Manifest
from emtoolkit.checkpoints.publications import Ledger, Published, add_published, add_saved
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.storage.atomic import TEMPORARY, write_directory
from emtoolkit.storage.safe_paths import is_plain_below, why_unsafe

logger = logging.getLogger(__name__)

# What checkpoints are loaded from, none of which can run code. Everything else stays on W&B.
_LOADABLE = frozenset({".safetensors", ".json", ".txt", ".jinja", ".model", ".md"})
_LARGEST_MANIFEST = 64_000_000
_ARRIVING = f"{TEMPORARY}arriving-"


def place_of(directory: Path, checkpoint: RemoteCheckpoint) -> Path:
    """Where `checkpoint` is in `directory`, or will be."""
    return directory / checkpoint_name(checkpoint.step)


def is_present(directory: Path, checkpoint: RemoteCheckpoint, ledger: Ledger, *, rehash: bool = False) -> bool:
    """Whether `directory` holds this very version of `checkpoint`, by its ledger and the sizes of its files.

    With `rehash` every file is hashed and compared with the manifest.
    """
    published = ledger.published.get(checkpoint.step)
    if published is None or published.digest != checkpoint.digest:
        return False
    place = place_of(directory, checkpoint)
    try:
        manifest = Manifest.read(place)
    except CheckpointError:
        return False
    return manifest.step == checkpoint.step and not manifest.problems(place, rehash=rehash)


class Receiver:
    """Puts checkpoints of `collection` into `directory`, whose lock the caller holds; threads may share it."""

    def __init__(self, directory: Path, collection: Collection) -> None:
        self._directory = directory
        self._collection = collection
        self._ledger = Ledger.read(directory)
        self._lock = threading.Lock()
        self._fingerprint: str | None = None
        self._left_out: dict[int, tuple[str, ...]] = {}
        for torn in directory.glob(f"{TEMPORARY}*"):
            if torn.is_dir() and not torn.is_symlink() and not torn.name.startswith(_ARRIVING):
                shutil.rmtree(torn)

    def receive(self, checkpoint: RemoteCheckpoint, transfer: Transfer) -> None:
        """Put `checkpoint` in its place; files that are there already, or in part, are not fetched again.

        Raises:
            RefusedError: it cannot be trusted or loaded; what of it had arrived is gone.
            TransferError: it does not arrive; what has arrived of it stays.
            CheckpointError: W&B does not tell its files, or the directory holds something else or takes no more.
            Cancelled: somebody asked for an end.
        """
        place = place_of(self._directory, checkpoint)
        if place.is_symlink():
            raise CheckpointError(f"{place}: it is a symlink, and a download goes through none; remove it")
        files = {file.name: file for file in self._collection.files(checkpoint)}
        # The digest in the name, so that parts of two versions are never put together.
        key = hashlib.sha256(checkpoint.digest.encode()).hexdigest()[:16]
        arriving = self._directory / f"{_ARRIVING}{place.name}-{key}"
        if arriving.is_symlink():
            arriving.unlink()
        try:
            arriving.mkdir(exist_ok=True)
            names = self._fetch(checkpoint, files, arriving, transfer)
        except RefusedError:
            shutil.rmtree(arriving)
            raise
        except OSError as error:
            raise CheckpointError(f"{place}: it could not be written ({error.strerror or error})") from error
        write_directory(place, lambda target: _move(names, arriving, target), checkpoint.bytes)
        self._note(checkpoint)
        for left_over in self._directory.glob(f"{_ARRIVING}{place.name}-*"):
            shutil.rmtree(left_over)
        if left_out := tuple(sorted(files.keys() - names)):
            self._left_out[checkpoint.step] = left_out

    def close(self) -> None:
        """Note at which step training ended, and warn of the files that were left on W&B."""
        record = TrajectoryRecord.read_if_any(self._directory)
        # What a run wrote knows better than the aliases on W&B; ours says nothing of what decides the weights.
        if record is not None and not record.fingerprinted and record.ended_at != self._collection.final_step:
            record.ended(self._collection.final_step).write(self._directory)
        steps_without = defaultdict(list)
        for step, names in sorted(self._left_out.items()):
            steps_without[names].append(step)
        for names, steps in steps_without.items():
            more = f" and {len(steps) - 1} more" if len(steps) > 1 else ""
            logger.warning(
                "%s, step %d%s: left on W&B, as nothing is loaded that could run code or that no manifest lists: %s",
                self._collection.name,
                steps[0],
                more,
                ", ".join(names),
            )

    def _fetch(
        self, checkpoint: RemoteCheckpoint, files: dict[str, RemoteFile], arriving: Path, transfer: Transfer
    ) -> list[str]:
        """The names of the files that are in `arriving` then, and that the manifest among them agrees with."""
        if (of_manifest := files.get(MANIFEST)) is None:
            raise RefusedError(
                f"{checkpoint.artifact}: there is no {MANIFEST} in it, so it is no checkpoint of emtoolkit; "
                f"'wandb artifact get {checkpoint.artifact}' takes it as it is"
            )
        if of_manifest.size > _LARGEST_MANIFEST:
            raise RefusedError(f"{of_manifest}: a size of {of_manifest.size:,} bytes is refused")
        place = place_of(self._directory, checkpoint)
        _fetch_file(of_manifest, arriving, place, transfer)
        manifest = _read_manifest(checkpoint, files, arriving)
        self._check_trajectory(checkpoint, manifest)
        for name in manifest.files:
            _fetch_file(files[name], arriving, place, transfer)
        if problems := manifest.problems(arriving, rehash=True):
            raise RefusedError(problems[0].replace(str(arriving), checkpoint.artifact, 1))
        self._admit(checkpoint, manifest)
        return [MANIFEST, *manifest.files]

    def _check_trajectory(self, checkpoint: RemoteCheckpoint, manifest: Manifest) -> None:
        if self._fingerprint is None:
            record, found = TrajectoryRecord.read_if_any(self._directory), list_checkpoints(self._directory)
            check_belongs_to(self._directory, record, found, manifest.fingerprint, {})
        elif manifest.fingerprint != self._fingerprint:
            raise RefusedError(
                f"{checkpoint.artifact}: it is of the trajectory {manifest.fingerprint[:8]}, and others of its "
                f"collection are of {self._fingerprint[:8]}"
            )

    def _admit(self, checkpoint: RemoteCheckpoint, manifest: Manifest) -> None:
        """The first checkpoint that is whole says which trajectory the directory holds, and the others follow it."""
        with self._lock:
            self._check_trajectory(checkpoint, manifest)
            self._fingerprint = manifest.fingerprint
            if TrajectoryRecord.read_if_any(self._directory) is None:
                schedule = str(checkpoint.metadata.get("schedule", ""))
                record = TrajectoryRecord(manifest.fingerprint, manifest.total_steps, schedule)
                record.ended(self._collection.final_step).write(self._directory)

    def _note(self, checkpoint: RemoteCheckpoint) -> None:
        with self._lock:
            if checkpoint.step not in self._ledger.metadata:
                add_saved(self._directory, checkpoint.step, checkpoint.metadata, run=None)
            add_published(self._directory, checkpoint.step, Published(checkpoint.artifact, checkpoint.digest))


def _read_manifest(checkpoint: RemoteCheckpoint, files: dict[str, RemoteFile], arriving: Path) -> Manifest:
    """The manifest that has arrived, if what it says fits what W&B declares; before anything larger is fetched."""
    try:
        manifest = Manifest.read(arriving)
    except CheckpointError as error:
        raise RefusedError(str(error).replace(str(arriving), checkpoint.artifact, 1)) from None
    if manifest.step != checkpoint.step:
        raise RefusedError(
            f"{checkpoint.artifact}: its manifest is of step {manifest.step}, and its alias step-{checkpoint.step}"
        )
    for name, expected in manifest.files.items():
        listed = f"{checkpoint.artifact}: its manifest lists the file {name!r}"
        if problem := why_unsafe(name):
            raise RefusedError(f"{listed}, a name that is refused, because {problem}")
        if PurePosixPath(name).suffix.lower() not in _LOADABLE:
            raise RefusedError(f"{listed}, which could run code when it is loaded, and is refused")
        if name not in files:
            raise RefusedError(f"{listed}, which is not in the artifact")
        if (size := files[name].size) != expected.bytes:
            raise RefusedError(f"{listed} with {expected.bytes} bytes, and W&B declares a size of {size} bytes")
    return manifest


def _fetch_file(file: RemoteFile, arriving: Path, place: Path, transfer: Transfer) -> None:
    target = arriving / file.name
    if not is_plain_below(arriving, file.name):
        raise CheckpointError(f"{target}: it is a symlink, and a download goes through none; remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() and is_plain_below(place, file.name) and _is_file(place / file.name, file):
        shutil.copyfile(place / file.name, target)
    transfer.fetch(file, target)


def _is_file(path: Path, file: RemoteFile) -> bool:
    if file.md5 is None or not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == file.md5


def _move(names: Sequence[str], source: Path, target: Path) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).rename(target / name)
