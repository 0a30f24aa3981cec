"""`emtoolkit sync`: sends logs and checkpoints that W&B does not have yet, once and in step order.

The server's listing decides: whatever W&B holds is not sent again, even if `publications.jsonl` does not mention it.
First `wandb sync` replays the logs of runs that were offline or interrupted; then the checkpoints that are still
missing are logged to the run that saved them.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from emtoolkit.artifacts.collection import Collection, NoSuchCollectionError, Reference
from emtoolkit.artifacts.publish import Publication, artifact_of, log_artifact
from emtoolkit.artifacts.server import client_limits
from emtoolkit.checkpoints.listing import CheckpointInfo, list_checkpoints
from emtoolkit.checkpoints.publications import Publications, Published, WandbRun, add_published
from emtoolkit.checkpoints.trajectory_file import RECORD
from emtoolkit.errors import CheckpointError, first_line
from emtoolkit.progress import Progress, silent
from emtoolkit.storage.lock import InUseError, lock_directory

_PROJECT = "emtoolkit"
# The time limit for W&B to finish the run after the last checkpoint, in seconds.
_FINISH_SECONDS = 60
_ENDED = ("finished", "failed", "crashed", "killed")
# The message of `wandb sync` for the log of a run that was killed or is still writing. A log without changes for
# `_IDLE_SECONDS` is that of a killed run.
_TORN = "ends with an incomplete record"
_IDLE_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Synced:
    """The result for one directory.

    `on_wandb` are the steps that W&B holds now, `published` the steps that this call sent as artifacts, `logs` the run
    logs that it sent. `problems` has one sentence for each thing still missing. `collection` is None if the directory
    was not examined.
    """

    directory: Path
    collection: str | None
    on_wandb: tuple[int, ...]
    published: tuple[int, ...]
    logs: tuple[Path, ...]
    problems: tuple[str, ...]


def run_directories(roots: Sequence[Path]) -> list[Path]:
    """Find the run directories among and below `roots`.

    Raises:
        CheckpointError: a root does not exist or contains no run.
    """
    found: dict[Path, None] = {}
    for root in roots:
        if not root.is_dir():
            raise CheckpointError(f"{root}: there is no such directory")
        records = sorted(root.rglob(RECORD))
        if not records:
            raise CheckpointError(f"{root}: the directory contains no run of emtoolkit (no {RECORD})")
        found |= dict.fromkeys(record.parent for record in records)
    return list(found)


def sync_all(
    directories: Sequence[Path],
    *,
    project: str | None = None,
    entity: str | None = None,
    progress: Progress = silent,
) -> list[Synced]:
    """Call `sync` for each directory; a directory in use by another process is skipped and reported as a problem.

    Raises:
        CheckpointError: nobody is logged in, or W&B does not answer.
    """
    results = []
    for directory in directories:
        try:
            results.append(sync(directory, project=project, entity=entity, progress=progress))
        except InUseError as error:
            results.append(Synced(directory, None, (), (), (), (str(error),)))
    return results


def sync(
    directory: Path, *, project: str | None = None, entity: str | None = None, progress: Progress = silent
) -> Synced:
    """Send the logs and checkpoints of `directory` that W&B does not have yet.

    The target is `entity/project`; each defaults to the one that the directory's runs logged to.

    Raises:
        CheckpointError: nobody is logged in, W&B does not answer, or another process is saving into `directory`.
    """
    lock = lock_directory(directory)
    try:
        return _DirectorySync(directory, project, entity, progress).run()
    finally:
        lock.release()


class _DirectorySync:
    """The synchronization of one directory."""

    def __init__(self, directory: Path, project: str | None, entity: str | None, progress: Progress) -> None:
        self._directory = directory
        self._progress = progress
        self._publications = Publications.read(directory)
        self._checkpoints = [
            info for info in list_checkpoints(directory) if info.complete and info.source == "emtoolkit"
        ]
        known_entity, known_project, known_collection = self._known_target()
        self._project = project or known_project
        # None means the default entity of the user who is logged in.
        self._entity = entity or known_entity or None
        self._has_new_target = bool(project or entity)
        self._collection = known_collection
        self._problems: list[str] = []

    def run(self) -> Synced:
        """Send the logs, then the checkpoints that are still missing, even if a log failed."""
        collection = self._read_collection()
        logs = [run.log for run in self._unsent_logs() if self._replay(run)]
        if logs:
            collection = self._read_collection()
        states = {info.step: self._remote_state(info, collection) for info in self._checkpoints}
        published = self._publish([info for info in self._checkpoints if states[info.step] == "missing"])
        on_wandb = sorted([step for step, state in states.items() if state == "equal"] + published)
        return Synced(
            self._directory,
            self._path(self._collection),
            tuple(on_wandb),
            tuple(published),
            tuple(logs),
            tuple(self._problems),
        )

    def _path(self, name: str) -> str:
        return "/".join(filter(None, (self._entity, self._project, name)))

    def _known_target(self) -> tuple[str, str, str]:
        """Entity, project and collection: of the newest run, else of a download, else from the directory's name."""
        publications = self._publications
        if publications.runs:
            newest = [*publications.runs.values()][-1][-1]
            entity, project, collection = newest.entity, newest.project, None
        elif publications.published:
            artifact = next(iter(publications.published.values())).artifact
            entity, project, collection = artifact.rpartition(":")[0].split("/")
        else:
            entity, project, collection = "", _PROJECT, None
        fingerprint = (self._checkpoints[0].fingerprint if self._checkpoints else None) or ""
        return (
            entity,
            project,
            publications.collection or collection or f"{self._directory.resolve().name}-{fingerprint[:8]}",
        )

    def _read_collection(self) -> Collection | None:
        try:
            collection = Collection.read(Reference(self._entity, self._project, self._collection))
        except NoSuchCollectionError:
            return None
        self._entity = collection.name.partition("/")[0]
        return collection

    def _unsent_logs(self) -> Iterator[WandbRun]:
        """The runs whose logs W&B does not have completely, oldest first."""
        noted = {run.log: run for runs in self._publications.runs.values() for run in runs}
        offline = self._directory.glob("wandb/offline-run-*/run-*.wandb")
        for log in sorted({*noted, *offline}, key=lambda log: log.parent.name.removeprefix("offline-")):
            run = noted.get(log) or WandbRun(log.stem.removeprefix("run-"), "", self._project, log)
            if not log.exists() or run.is_synced:
                continue
            if not log.parent.name.startswith("offline-") and self._state(run) in ("finished", "failed"):
                # W&B learns the end of an online run only after everything else.
                run.mark_synced()
                continue
            yield run

    def _replay(self, run: WandbRun) -> bool:
        """Send the log of `run` with `wandb sync`; return whether W&B has the whole log."""
        self._progress(f"log of {run.log.parent.name}", 0, 1)
        target = ["--project", self._project] if self._has_new_target else []
        target += ["--entity", self._entity] if self._has_new_target and self._entity else []
        command = [sys.executable, "-m", "wandb", "sync", "--include-online", *target, str(run.log.absolute())]
        limits = {f"WANDB_{name.upper()}": str(value) for name, value in client_limits().items()}
        # The `wandb` command fails in a directory that contains a file named `wandb`.
        output = subprocess.run(
            command,
            cwd=run.log.parent,
            env={**os.environ, **limits, "WANDB_MODE": "online"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        ).stdout
        self._progress(f"log of {run.log.parent.name}", 1, 1)
        if reason := self._why_incomplete(run, output):
            # `wandb sync` marks the log as synced even if the server refused the history.
            run.unmark_synced()
            self._problems.append(f"{run.log}: {reason}")
            return False
        run.mark_synced()
        return True

    def _why_incomplete(self, run: WandbRun, output: str) -> str | None:
        """Why W&B does not have the whole log of `run` after `wandb sync` printed `output`; None if W&B has it."""
        errors = [line for line in output.splitlines() if "ERROR" in line] or output.splitlines()[-1:]
        if self._state(run) not in _ENDED:
            return f"'wandb sync' did not send the whole log ({' '.join(errors).strip() or 'no output'})"
        if run.is_synced:
            return None
        if _TORN not in output:
            return f"'wandb sync' did not send the whole log ({' '.join(errors).strip()})"
        idle = time.time() - run.log.stat().st_mtime
        # The log of a killed run has no more records.
        return None if idle > _IDLE_SECONDS else "the log ends in the middle of a record; sync again after the run"

    def _remote_state(
        self, info: CheckpointInfo, collection: Collection | None
    ) -> Literal["equal", "missing", "different"]:
        """Whether W&B holds `info` byte for byte, which is recorded; a difference is added to the problems."""
        listed = collection.checkpoints if collection else ()
        remote = next((checkpoint for checkpoint in listed if checkpoint.step == info.step), None)
        if remote is None:
            return "missing"
        held = Published(remote.artifact, remote.digest)
        if self._publications.published.get(info.step) != held:
            if artifact_of(self._publication(info), self._collection).digest != remote.digest:
                self._problems.append(
                    f"{info.path}: W&B holds different files for this step and keeps them ({remote.artifact})"
                )
                return "different"
            add_published(self._directory, info.step, held)
        return "equal" if remote.final or not info.final else "missing"

    def _publication(self, info: CheckpointInfo) -> Publication:
        metadata = self._publications.metadata.get(info.step) or {"step": info.step, "fingerprint": info.fingerprint}
        return Publication(info.step, info.path, info.final, metadata)

    def _publish(self, missing: Sequence[CheckpointInfo]) -> list[int]:
        """Log `missing` in step order, each to the run that saved it; stop at the first failure."""
        published: list[int] = []
        for run_id, infos in groupby(missing, key=lambda info: self._publications.run_of.get(info.step)):
            try:
                with self._attached(run_id) as run:
                    for info in infos:
                        self._progress(f"checkpoint {info.step}", len(published), len(missing))
                        self._log(run, info)
                        published.append(info.step)
            except Exception as error:  # noqa: BLE001 - the client documents no set of exceptions
                failed = missing[len(published)]
                self._problems.append(f"{failed.path}: publishing failed ({first_line(error)})")
                break
        return published

    def _log(self, run: Any, info: CheckpointInfo) -> None:
        publication = self._publication(info)
        published = log_artifact(run, artifact_of(publication, self._collection), publication, self._publications.tags)
        if published is not None:
            add_published(self._directory, info.step, published)
            self._entity = published.artifact.partition("/")[0]

    @contextmanager
    def _attached(self, run_id: str | None) -> Iterator[Any]:
        """Resume the W&B run `run_id` without logging anything about this process; without an id start a new run."""
        import wandb

        known = self._publications.runs.get(run_id or "")
        state = self._state(known[-1]) if known else None
        with tempfile.TemporaryDirectory(prefix="emtoolkit-sync-") as scratch:
            run = wandb.init(
                id=run_id,
                project=self._project,
                entity=self._entity,
                name=None if state else f"sync-{self._directory.resolve().name}",
                job_type=None if state else "sync",
                group=None if state else self._collection,
                resume="allow" if run_id else None,
                mode="online",
                dir=scratch,
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    finish_timeout=_FINISH_SECONDS,
                    x_disable_stats=True,
                    x_disable_meta=True,
                    save_code=False,
                    **client_limits(),
                ),
            )
            try:
                yield run
            finally:
                # A failed run keeps its state.
                run.finish(exit_code=int(state in ("failed", "crashed")))

    def _state(self, run: WandbRun) -> str | None:
        """The state of `run` on W&B; None if W&B does not have the run."""
        import wandb

        project = self._project if self._has_new_target else run.project
        path = "/".join(filter(None, (self._entity, project, run.id)))
        try:
            return str(wandb.Api().run(path).state)
        except (wandb.errors.Error, TimeoutError, ValueError):
            return None
