"""`publications.jsonl`: what the runs in a directory say of each checkpoint, and where on W&B it is.

A line `saved` is written before the checkpoint is there; whether it is, the directory tells. One line is one event, so
that adding one costs nothing and cannot harm the others; a line that a kill cut short is passed over. A step that is
not here as published is one that `emtoolkit sync` asks W&B about.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emtoolkit.errors import CheckpointError

LEDGER = "publications.jsonl"


@dataclass(frozen=True, slots=True)
class WandbRun:
    """A W&B run that logged to this directory. `log` is the file that `wandb sync` replays.

    `entity` is empty for a run that was offline, which has none yet.
    """

    id: str
    entity: str
    project: str
    log: Path

    @classmethod
    def of(cls, run: Any) -> "WandbRun":
        return cls(str(run.id), str(run.entity or ""), str(run.project or ""), Path(run.settings.sync_file))

    @property
    def is_synced(self) -> bool:
        """Whether W&B has the whole log; the mark is the one that `wandb sync` leaves and looks for."""
        return self._mark.exists()

    def mark_synced(self) -> None:
        self._mark.touch()

    def unmark_synced(self) -> None:
        self._mark.unlink(missing_ok=True)

    @property
    def _mark(self) -> Path:
        return self.log.with_suffix(".wandb.synced")


@dataclass(frozen=True, slots=True)
class Published:
    """A version on W&B, `entity/project/collection:vN`, and W&B's digest of it."""

    artifact: str
    digest: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """What `publications.jsonl` says: by step, the metadata and the run of its first save, and where it is published.

    The first, as W&B keeps the first of two equal versions with its metadata. `collection` and `tags` are what the
    checkpoints are published under.
    """

    collection: str | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    run_of: Mapping[int, str] = field(default_factory=dict)
    published: Mapping[int, Published] = field(default_factory=dict)
    runs: Mapping[str, tuple[WandbRun, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "Ledger":
        """The ledger of `directory`, an empty one where there is none.

        Raises:
            CheckpointError: the file cannot be read.
        """
        path = directory / LEDGER
        try:
            lines = path.read_bytes().splitlines()
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
        collection: str | None = None
        tags: tuple[str, ...] = ()
        metadata, run_of, published = dict[int, Any](), dict[int, str](), dict[int, Published]()
        runs = dict[str, tuple[WandbRun, ...]]()
        for event in filter(None, map(_event, lines)):
            match event:
                case {"event": "collection", "name": str(name), "tags": list(names)}:
                    collection, tags = name, tuple(map(str, names))
                case {"event": "run", "id": str(run), "entity": str(entity), "project": str(project), "log": str(log)}:
                    runs[run] = (*runs.get(run, ()), WandbRun(run, entity, project, directory / log))
                case {"event": "saved", "step": int(step), "metadata": dict(told), "run": run}:
                    metadata.setdefault(step, told)
                    if isinstance(run, str):
                        run_of.setdefault(step, run)
                case {"event": "published", "step": int(step), "artifact": str(artifact), "digest": str(digest)}:
                    published[step] = Published(artifact, digest)
        return cls(collection, tags, metadata, run_of, published, runs)


def add_collection(directory: Path, name: str, tags: Sequence[str]) -> None:
    """Note the name and the tags under which checkpoints in `directory` are published."""
    _append(directory, {"event": "collection", "name": name, "tags": list(tags)})


def add_run(directory: Path, run: WandbRun) -> None:
    """Note that `run` logs to `directory`; a log inside it is named from there, so that both can be moved."""
    log = run.log.absolute()
    inside = log.is_relative_to(directory.absolute())
    named = log.relative_to(directory.absolute()) if inside else log
    _append(
        directory,
        {"event": "run", "id": run.id, "entity": run.entity, "project": run.project, "log": str(named)},
    )


def add_saved(directory: Path, step: int, metadata: Mapping[str, Any], run: str | None) -> None:
    """Note what the run `run`, if any, tells of the checkpoint of `step` that it is about to save."""
    _append(directory, {"event": "saved", "step": step, "metadata": dict(metadata), "run": run})


def add_published(directory: Path, step: int, published: Published) -> None:
    """Note where on W&B the checkpoint of `step` is."""
    _append(directory, {"event": "published", "step": step, "artifact": published.artifact, "digest": published.digest})


def _append(directory: Path, event: Mapping[str, Any]) -> None:
    path = directory / LEDGER
    try:
        # A torn last line, if there is one, ends here. In one write, as a thread and another may be at it at once.
        line = b"\n" * (not _ends_in_newline(path)) + json.dumps(event).encode() + b"\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"{path}: could not be written ({error.strerror or error})") from error


def _ends_in_newline(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return True
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
    except FileNotFoundError:
        return True


def _event(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
