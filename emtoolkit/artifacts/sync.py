"""`emtoolkit sync`: brings to W&B what it does not have of the runs in some directories, once and in step order.

The server is asked first and believed: what it holds is not sent again, also where this machine never heard so. What
is missing comes from two places: the logs of runs that were offline or cut off, which `wandb sync` replays, and then
the checkpoints that are still not there, which are logged to the run that saved them.
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
from emtoolkit.artifacts.server import client_bounds
from emtoolkit.checkpoints.listing import CheckpointInfo, list_checkpoints
from emtoolkit.checkpoints.publications import Ledger, Published, WandbRun, add_published
from emtoolkit.checkpoints.trajectory_file import RECORD
from emtoolkit.errors import CheckpointError, first_line
from emtoolkit.progress import Progress, silent
from emtoolkit.storage.lock import InUseError, lock_directory

_PROJECT = "emtoolkit"
# When every checkpoint is there, W&B may take so long to end the run that they were logged to.
_FINISH_SECONDS = 60
_ENDED = ("finished", "failed", "crashed", "killed")
# What `wandb sync` says of a log whose run was killed, or is at work; it is over if nothing was added for so long.
_TORN = "ends with an incomplete record"
_IDLE_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Synced:
    """What was done for one directory: the steps that W&B has now, those of them published by hand, the logs sent.

    `problems` are sentences about what W&B still does not have. `collection` is None where nobody looked.
    """

    directory: Path
    collection: str | None
    on_wandb: tuple[int, ...]
    published: tuple[int, ...]
    logs: tuple[Path, ...]
    problems: tuple[str, ...]


def run_directories(roots: Sequence[Path]) -> list[Path]:
    """The directories of runs among and below `roots`.

    Raises:
        CheckpointError: a root does not exist, or there is no run in it.
    """
    found: dict[Path, None] = {}
    for root in roots:
        if not root.is_dir():
            raise CheckpointError(f"{root}: there is no such directory")
        records = sorted(root.rglob(RECORD))
        if not records:
            raise CheckpointError(f"{root}: there is no run of emtoolkit in it, that is no {RECORD}")
        found |= dict.fromkeys(record.parent for record in records)
    return list(found)


def sync_all(
    directories: Sequence[Path],
    *,
    project: str | None = None,
    entity: str | None = None,
    progress: Progress = silent,
) -> list[Synced]:
    """`sync` for each of `directories`; one that another process is at work on is left out, and a problem.

    Raises:
        CheckpointError: nobody is logged in, or W&B does not answer.
    """
    done = []
    for directory in directories:
        try:
            done.append(sync(directory, project=project, entity=entity, progress=progress))
        except InUseError as error:
            done.append(Synced(directory, None, (), (), (), (str(error),)))
    return done


def sync(
    directory: Path, *, project: str | None = None, entity: str | None = None, progress: Progress = silent
) -> Synced:
    """Bring to W&B what it does not have of the run in `directory`.

    `project` and `entity` say where; by default where its runs logged to.

    Raises:
        CheckpointError: nobody is logged in, W&B does not answer, or another process is saving into `directory`.
    """
    lock = lock_directory(directory)
    try:
        return _Sync(directory, project, entity, progress).done()
    finally:
        lock.release()


class _Sync:
    """One directory on its way to W&B."""

    def __init__(self, directory: Path, project: str | None, entity: str | None, progress: Progress) -> None:
        self._directory = directory
        self._progress = progress
        self._ledger = Ledger.read(directory)
        self._checkpoints = [
            info for info in list_checkpoints(directory) if info.complete and info.source == "emtoolkit"
        ]
        known_entity, known_project, known_collection = self._known_place()
        self._project = project or known_project
        # None is the default entity of whoever is logged in.
        self._entity = entity or known_entity or None
        self._moved = bool(project or entity)
        self._collection = known_collection
        self._problems: list[str] = []

    def done(self) -> Synced:
        """Send the logs, then the checkpoints that are still missing, whatever became of the logs."""
        there = self._on_wandb()
        logs = [run.log for run in self._logs() if self._replay(run)]
        if logs:
            there = self._on_wandb()
        held = {info.step: self._is_held(info, there) for info in self._checkpoints}
        published = self._publish([info for info in self._checkpoints if held[info.step] == "no"])
        on_wandb = sorted([step for step, is_held in held.items() if is_held == "yes"] + published)
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

    def _known_place(self) -> tuple[str, str, str]:
        """Entity, project and collection: of the newest run, of what was downloaded, or by the directory's name."""
        ledger = self._ledger
        if ledger.runs:
            newest = [*ledger.runs.values()][-1][-1]
            entity, project, collection = newest.entity, newest.project, None
        elif ledger.published:
            artifact = next(iter(ledger.published.values())).artifact
            entity, project, collection = artifact.rpartition(":")[0].split("/")
        else:
            entity, project, collection = "", _PROJECT, None
        fingerprint = (self._checkpoints[0].fingerprint if self._checkpoints else None) or ""
        return entity, project, ledger.collection or collection or f"{self._directory.resolve().name}-{fingerprint[:8]}"

    def _on_wandb(self) -> Collection | None:
        try:
            there = Collection.read(Reference(self._entity, self._project, self._collection))
        except NoSuchCollectionError:
            return None
        self._entity = there.name.partition("/")[0]
        return there

    def _logs(self) -> Iterator[WandbRun]:
        """The runs whose logs W&B does not have to their end, oldest first."""
        noted = {run.log: run for runs in self._ledger.runs.values() for run in runs}
        offline = self._directory.glob("wandb/offline-run-*/run-*.wandb")
        for log in sorted({*noted, *offline}, key=lambda log: log.parent.name.removeprefix("offline-")):
            run = noted.get(log) or WandbRun(log.stem.removeprefix("run-"), "", self._project, log)
            if not log.exists() or run.is_synced:
                continue
            if not log.parent.name.startswith("offline-") and self._state(run) in ("finished", "failed"):
                # How an online run ended is what W&B is told after all else.
                run.mark_synced()
                continue
            yield run

    def _replay(self, run: WandbRun) -> bool:
        """Let `wandb sync` send the log of `run`; whether W&B has all of it that there is."""
        self._progress(f"log of {run.log.parent.name}", 0, 1)
        where = ["--project", self._project] if self._moved else []
        where += ["--entity", self._entity] if self._moved and self._entity else []
        command = [sys.executable, "-m", "wandb", "sync", "--include-online", *where, str(run.log.absolute())]
        bounds = {f"WANDB_{name.upper()}": str(value) for name, value in client_bounds().items()}
        # wandb's command line cannot run where a file is named `wandb`.
        told = subprocess.run(
            command,
            cwd=run.log.parent,
            env={**os.environ, **bounds, "WANDB_MODE": "online"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        ).stdout
        self._progress(f"log of {run.log.parent.name}", 1, 1)
        if why := self._what_is_missing(run, told):
            # It leaves its mark also where the server refused the history.
            run.unmark_synced()
            self._problems.append(f"{run.log}: {why}")
            return False
        run.mark_synced()
        return True

    def _what_is_missing(self, run: WandbRun, told: str) -> str | None:
        """Why W&B has not all of the log of `run`, of which `wandb sync` has `told` this; None if it has."""
        errors = [line for line in told.splitlines() if "ERROR" in line] or told.splitlines()[-1:]
        if self._state(run) not in _ENDED:
            return f"'wandb sync' did not send all of it ({' '.join(errors).strip() or 'it said nothing'})"
        if run.is_synced:
            return None
        if _TORN not in told:
            return f"'wandb sync' did not send all of it ({' '.join(errors).strip()})"
        idle = time.time() - run.log.stat().st_mtime
        # Of a run that was killed, W&B has now what there is.
        return None if idle > _IDLE_SECONDS else "it ends in the middle of a record; sync again when its run is over"

    def _is_held(self, info: CheckpointInfo, there: Collection | None) -> Literal["yes", "no", "otherwise"]:
        """Whether W&B has `info` under its name, to the byte, which is noted; or other bytes, which is a problem."""
        remote = next((one for one in there.checkpoints if one.step == info.step), None) if there else None
        if remote is None:
            return "no"
        held = Published(remote.artifact, remote.digest)
        if self._ledger.published.get(info.step) != held:
            if artifact_of(self._publication(info), self._collection).digest != remote.digest:
                self._problems.append(
                    f"{info.path}: W&B has other bytes at this step, which are left as they are ({remote.artifact})"
                )
                return "otherwise"
            add_published(self._directory, info.step, held)
        return "yes" if remote.final or not info.final else "no"

    def _publication(self, info: CheckpointInfo) -> Publication:
        told = self._ledger.metadata.get(info.step) or {"step": info.step, "fingerprint": info.fingerprint}
        return Publication(info.step, info.path, info.final, told)

    def _publish(self, missing: Sequence[CheckpointInfo]) -> list[int]:
        """Log `missing` in step order, each to the run that saved it; ends at the first that W&B does not take."""
        published: list[int] = []
        for run_id, infos in groupby(missing, key=lambda info: self._ledger.run_of.get(info.step)):
            try:
                with self._attached(run_id) as run:
                    for info in infos:
                        self._progress(f"checkpoint {info.step}", len(published), len(missing))
                        self._log(run, info)
                        published.append(info.step)
            except Exception as error:  # noqa: BLE001 - the client documents no set of exceptions
                next_one = missing[len(published)]
                self._problems.append(f"{next_one.path}: W&B did not take it ({first_line(error)})")
                break
        return published

    def _log(self, run: Any, info: CheckpointInfo) -> None:
        publication = self._publication(info)
        published = log_artifact(run, artifact_of(publication, self._collection), publication, self._ledger.tags)
        if published is not None:
            add_published(self._directory, info.step, published)
            self._entity = published.artifact.partition("/")[0]

    @contextmanager
    def _attached(self, run_id: str | None) -> Iterator[Any]:
        """The W&B run `run_id`, going on without a trace of this process; a new one where no run saved anything."""
        import wandb

        known = self._ledger.runs.get(run_id or "")
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
                    **client_bounds(),
                ),
            )
            try:
                yield run
            finally:
                # A run that had failed is to stay one.
                run.finish(exit_code=int(state in ("failed", "crashed")))

    def _state(self, run: WandbRun) -> str | None:
        """What W&B says of `run`, None if it does not know it."""
        import wandb

        project = self._project if self._moved else run.project
        path = "/".join(filter(None, (self._entity, project, run.id)))
        try:
            return str(wandb.Api().run(path).state)
        except (wandb.errors.Error, TimeoutError, ValueError):
            return None
