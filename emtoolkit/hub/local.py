"""The side of a push that is on this machine: checkpoints whose files are what their manifests say."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.listing import CheckpointInfo, list_checkpoints, why_none_is_complete
from emtoolkit.checkpoints.manifest import MANIFEST, Manifest
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord, withheld
from emtoolkit.errors import CheckpointError
from emtoolkit.progress import Progress, counting
from emtoolkit.schedules.selection import select_steps
from emtoolkit.storage.digests import FileDigest


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file, or a text that becomes one, under its name in the repository."""

    source: Path | bytes
    sha256: str
    size: int

    @classmethod
    def of_text(cls, text: bytes) -> "LocalFile":
        return cls(text, hashlib.sha256(text).hexdigest(), len(text))

    def content(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    def git_oid(self) -> str:
        """The name that git gives to the content: SHA-1 over its length and the content."""
        content = self.content()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class LocalCheckpoint:
    directory: Path
    step: int
    final: bool
    manifest: Manifest
    files: Mapping[str, LocalFile]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True, slots=True)
class LocalTrajectory:
    """At least one checkpoint, ascending by step, of one trajectory; `record` is None where the directory has none."""

    name: str
    checkpoints: Sequence[LocalCheckpoint]
    record: TrajectoryRecord | None

    @property
    def fingerprint(self) -> str:
        return self.checkpoints[0].manifest.fingerprint

    def at(self, step: int) -> LocalCheckpoint | None:
        return next((each for each in self.checkpoints if each.step == step), None)


def read_trajectory(directory: Path, steps: str | None, progress: Progress) -> LocalTrajectory:
    """The checkpoints of `directory` that `steps` selects (all if None), each file hashed.

    Raises:
        ScheduleError: `steps` is not a schedule.
        CheckpointError: the directory or a step that is written out does not exist, a checkpoint is damaged or another
            tool's, the directory mixes trajectories, or its schedule may still delete checkpoints.
    """
    found = [info for info in list_checkpoints(directory) if info.complete and info.is_of_trajectory]
    if not found:
        raise CheckpointError(f"{directory}: no complete checkpoint was found{why_none_is_complete(directory)}")
    record = TrajectoryRecord.read_if_any(directory)
    if record is not None and record.may_thin:
        raise CheckpointError(withheld(directory))
    chosen = found if steps is None else _selected(directory, found, steps)
    hashed = counting(progress, "comparing checkpoints", sum(info.bytes for info in chosen))
    checkpoints = []
    for info in chosen:
        if info.source == "other":
            raise CheckpointError(
                f"{info.path}: another tool saved it, and no manifest says which trajectory it belongs to; only "
                "checkpoints of emtoolkit can be pushed"
            )
        manifest = Manifest.read(info.path)
        if problems := manifest.problems(info.path, rehash=True, hashed=hashed):
            raise CheckpointError(problems[0])
        checkpoints.append(local_checkpoint(info.path, manifest, final=info.final))
    fingerprints = {each.manifest.fingerprint for each in checkpoints}
    if len(fingerprints) > 1:
        names = " and ".join(sorted(fingerprint[:8] for fingerprint in fingerprints))
        raise CheckpointError(
            f"{directory}: mixes several trajectories ({names}); push each from a directory of its own"
        )
    return LocalTrajectory(str(directory), checkpoints, record)


def local_checkpoint(path: Path, manifest: Manifest, *, final: bool) -> LocalCheckpoint:
    """The checkpoint at `path`, whose files have been compared with its manifest."""
    files = {name: LocalFile(path / name, digest.sha256, digest.bytes) for name, digest in manifest.files.items()}
    own = FileDigest.of(path / MANIFEST)
    files[MANIFEST] = LocalFile(path / MANIFEST, own.sha256, own.bytes)
    return LocalCheckpoint(path, manifest.step, final, manifest, files)


def _selected(directory: Path, found: Sequence[CheckpointInfo], steps: str) -> list[CheckpointInfo]:
    def final() -> int:
        if not found[-1].final:
            raise CheckpointError(f"{directory}: there is no final checkpoint; the last step is {found[-1].step}")
        return found[-1].step

    def total_steps() -> int | None:
        return Manifest.read(found[-1].path).total_steps if found[-1].source == "emtoolkit" else None

    try:
        selected = select_steps(steps, [info.step for info in found], final, total_steps)
    except CheckpointError as error:
        damaged = [i.step for i in list_checkpoints(directory) if not i.complete]
        more = f"; {checkpoint_name(damaged[0])} is damaged" if damaged else ""
        raise CheckpointError(f"{error}{more}") from None
    return [info for info in found if info.step in selected]
