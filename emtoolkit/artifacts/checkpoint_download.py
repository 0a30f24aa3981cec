"""Safe download of one checkpoint of a collection into a local directory; nothing is unpickled.

The files are downloaded into a temporary directory, which an interrupted download leaves behind and the next download
continues. The checkpoint directory appears under its final name only after its manifest agrees with every byte.
"""

import hashlib
import logging
import shutil
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from emtoolkit.artifacts.collection import Collection, RemoteCheckpoint, RemoteFile
from emtoolkit.artifacts.digest_algorithm import has_digest
from emtoolkit.artifacts.file_transfer import Transfer
from emtoolkit.checkpoints.arriving import read_arriving
from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.listing import check_belongs_to, list_checkpoints
from emtoolkit.checkpoints.manifest import LARGEST_MANIFEST, MANIFEST, Manifest
from emtoolkit.checkpoints.publications import Publications, Published, add_published, add_saved
from emtoolkit.checkpoints.remote import RefusedError
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.shell_command import quoted_command
from emtoolkit.storage.atomic import TEMPORARY, write_directory
from emtoolkit.storage.safe_paths import is_plain_below

logger = logging.getLogger(__name__)

_PARTIAL = f"{TEMPORARY}arriving-"


def checkpoint_path(directory: Path, checkpoint: RemoteCheckpoint) -> Path:
    """The path of `checkpoint` in `directory`, whether downloaded yet or not."""
    return directory / checkpoint_name(checkpoint.step)


def is_present(
    directory: Path, checkpoint: RemoteCheckpoint, publications: Publications, *, rehash: bool = False
) -> bool:
    """Whether `directory` holds this version of `checkpoint`, according to `publications` and the sizes of the files.

    With `rehash` every file is hashed and compared with the manifest.
    """
    published = publications.published.get(checkpoint.step)
    if published is None or published.digest != checkpoint.digest:
        return False
    path = checkpoint_path(directory, checkpoint)
    try:
        manifest = Manifest.read(path)
    except CheckpointError:
        return False
    return manifest.step == checkpoint.step and not manifest.problems(path, rehash=rehash)


class CheckpointReceiver:
    """Downloads checkpoints of `collection` into `directory`, which the caller has locked; may be used by threads."""

    def __init__(self, directory: Path, collection: Collection) -> None:
        self._directory = directory
        self._collection = collection
        self._publications = Publications.read(directory)
        self._lock = threading.Lock()
        self._fingerprint: str | None = None
        self._skipped: dict[int, tuple[str, ...]] = {}
        for left_over in directory.glob(f"{TEMPORARY}*"):
            if left_over.is_dir() and not left_over.is_symlink() and not left_over.name.startswith(_PARTIAL):
                shutil.rmtree(left_over)

    def receive(self, checkpoint: RemoteCheckpoint, transfer: Transfer) -> None:
        """Download `checkpoint`; files and parts of files that are present are not downloaded again.

        Raises:
            RefusedError: the checkpoint is unsafe or cannot be loaded; its downloaded files have been deleted.
            TransferError: the network or the server failed; the downloaded files stay for the next attempt.
            CheckpointError: W&B could not list the files, or the directory holds another trajectory or is full.
            Cancelled: the download was cancelled.
        """
        path = checkpoint_path(self._directory, checkpoint)
        if path.is_symlink():
            raise CheckpointError(f"{path}: the path is a symlink, which downloads do not follow; remove the symlink")
        files = {file.name: file for file in self._collection.files(checkpoint)}
        # The digest in the name keeps the files of two versions apart.
        key = hashlib.sha256(checkpoint.digest.encode()).hexdigest()[:16]
        partial = self._directory / f"{_PARTIAL}{path.name}-{key}"
        if partial.is_symlink():
            partial.unlink()
        try:
            partial.mkdir(exist_ok=True)
            names = self._fetch(checkpoint, files, partial, transfer)
        except RefusedError:
            shutil.rmtree(partial)
            raise
        except OSError as error:
            raise CheckpointError(f"{path}: writing failed ({error.strerror or error})") from error
        write_directory(path, lambda target: _move(names, partial, target), checkpoint.bytes)
        self._record(checkpoint)
        for left_over in self._directory.glob(f"{_PARTIAL}{path.name}-*"):
            # A symlink does not come from a download, and is not deleted: its target may be anything.
            if not left_over.is_symlink():
                shutil.rmtree(left_over)
        if skipped := tuple(sorted(files.keys() - names)):
            self._skipped[checkpoint.step] = skipped

    def close(self) -> None:
        """Record the step at which training ended, and warn about files that were not downloaded."""
        record = TrajectoryRecord.read_if_any(self._directory)
        # A file written by a run has `fingerprinted` values and is more reliable than the aliases on W&B.
        if record is not None and not record.fingerprinted and record.ended_at != self._collection.final_step:
            record.ended(self._collection.final_step).write(self._directory)
        steps_without = defaultdict(list)
        for step, names in sorted(self._skipped.items()):
            steps_without[names].append(step)
        for names, steps in steps_without.items():
            more = f" and {len(steps) - 1} more" if len(steps) > 1 else ""
            logger.warning(
                "%s, step %d%s: not downloaded (may execute code, or not listed in the manifest): %s",
                self._collection.name,
                steps[0],
                more,
                ", ".join(names),
            )

    def _fetch(
        self, checkpoint: RemoteCheckpoint, files: dict[str, RemoteFile], partial: Path, transfer: Transfer
    ) -> list[str]:
        """Download the manifest and the files that it lists into `partial`, check them, and return their names."""
        if (manifest_file := files.get(MANIFEST)) is None:
            raise RefusedError(
                f"{checkpoint.artifact}: the artifact has no {MANIFEST}, so emtoolkit did not save it; "
                f"{quoted_command('wandb', 'artifact', 'get', checkpoint.artifact)} downloads the artifact unchecked"
            )
        if manifest_file.size > LARGEST_MANIFEST:
            raise RefusedError(f"{manifest_file}: a size of {manifest_file.size:,} bytes is refused")
        present = checkpoint_path(self._directory, checkpoint)
        _fetch_file(manifest_file, partial, present, transfer)
        manifest = _read_manifest(checkpoint, files, partial)
        self._check_trajectory(checkpoint, manifest)
        for name in manifest.files:
            _fetch_file(files[name], partial, present, transfer)
        if problems := manifest.problems(partial, rehash=True):
            raise RefusedError(problems[0].replace(str(partial), checkpoint.artifact, 1))
        self._admit(checkpoint, manifest)
        return [MANIFEST, *manifest.files]

    def _check_trajectory(self, checkpoint: RemoteCheckpoint, manifest: Manifest) -> None:
        if self._fingerprint is None:
            record, found = TrajectoryRecord.read_if_any(self._directory), list_checkpoints(self._directory)
            check_belongs_to(self._directory, record, found, manifest.fingerprint, {})
        elif manifest.fingerprint != self._fingerprint:
            raise RefusedError(
                f"{checkpoint.artifact}: the checkpoint belongs to trajectory {manifest.fingerprint[:8]}, others of "
                f"the collection to {self._fingerprint[:8]}"
            )

    def _admit(self, checkpoint: RemoteCheckpoint, manifest: Manifest) -> None:
        """Check the trajectory; the first complete checkpoint determines the trajectory of an empty directory."""
        with self._lock:
            self._check_trajectory(checkpoint, manifest)
            self._fingerprint = manifest.fingerprint
            if TrajectoryRecord.read_if_any(self._directory) is None:
                schedule = checkpoint.record.schedule or ""
                record = TrajectoryRecord(manifest.fingerprint, manifest.total_steps, schedule)
                record.ended(self._collection.final_step).write(self._directory)

    def _record(self, checkpoint: RemoteCheckpoint) -> None:
        with self._lock:
            if checkpoint.step not in self._publications.metadata:
                add_saved(self._directory, checkpoint.step, checkpoint.metadata, run=None)
            add_published(self._directory, checkpoint.step, Published(checkpoint.artifact, checkpoint.digest))


def _read_manifest(checkpoint: RemoteCheckpoint, files: dict[str, RemoteFile], partial: Path) -> Manifest:
    """Read the downloaded manifest and compare it with W&B's declarations, before larger files are downloaded."""
    sizes = {name: file.size for name, file in files.items()}
    return read_arriving(
        partial, checkpoint.artifact, checkpoint.step, sizes, f"the alias is step-{checkpoint.step}", "W&B"
    )


def _fetch_file(file: RemoteFile, partial: Path, present: Path, transfer: Transfer) -> None:
    """Copy `file` from the checkpoint directory `present` if an equal file is there, or download it."""
    target = partial / file.name
    if not is_plain_below(partial, file.name):
        raise CheckpointError(f"{target}: the path is a symlink, which downloads do not follow; remove the symlink")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() and is_plain_below(present, file.name) and _matches(present / file.name, file):
        shutil.copyfile(present / file.name, target)
    transfer.fetch(file, target)


def _matches(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and has_digest(path, file.digest)


def _move(names: Sequence[str], source: Path, target: Path) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).rename(target / name)
