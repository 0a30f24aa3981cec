"""`emtoolkit sync`: sends logs and checkpoints that W&B does not have yet, once and in step order.

The server's listing decides: whatever W&B holds is not sent again, even if `publications.jsonl` does not mention it.
First `wandb sync` replays the logs of runs that were offline or interrupted, without the checkpoints in them; then the
checkpoints that W&B lacks are compared with their manifests and logged to the run that saved them. Those that a
schedule may still delete wait for the end of their training.
"""

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from emtoolkit.artifacts.attached_run import attached_run
from emtoolkit.artifacts.collection import Collection, NoSuchCollectionError, Reference, RemoteCheckpoint
from emtoolkit.artifacts.destination import Destination, compare_with, difference_at
from emtoolkit.artifacts.joined_log import Held, was_on_wandb
from emtoolkit.artifacts.known_target import known_target
from emtoolkit.artifacts.names import RUN_NAME
from emtoolkit.artifacts.pipeline import PublicationPipeline
from emtoolkit.artifacts.publication import CheckedArtifact, DamagedError, Publication
from emtoolkit.artifacts.run_log import Replay, ended_well, is_live, replay
from emtoolkit.artifacts.version_removal import revive
from emtoolkit.artifacts.withdrawal import withdraw_passed
from emtoolkit.checkpoints.layout import step_of
from emtoolkit.checkpoints.listing import CheckpointInfo, damaged_records, list_checkpoints
from emtoolkit.checkpoints.manifest import MANIFEST
from emtoolkit.checkpoints.publications import Publications, Published, WandbRun, add_published
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord, withheld
from emtoolkit.errors import CheckpointError, first_line
from emtoolkit.progress import Progress, silent
from emtoolkit.storage.lock import InUseError, lock_directory

_State = Literal["equal", "missing", "different", "damaged"]
_ENDED = ("finished", "failed", "crashed", "killed", "preempted")


@dataclass(frozen=True, slots=True)
class Synced:
    """The result for one directory.

    `on_wandb` are the steps that W&B holds now, `published` the steps that this call sent as artifacts, `logs` the run
    logs that it sent. `problems` has one sentence for each thing still missing. `collection` is None if not examined.
    """

    directory: Path
    collection: str | None
    on_wandb: tuple[int, ...]
    published: tuple[int, ...]
    logs: tuple[Path, ...]
    problems: tuple[str, ...]


def sync_all(
    directories: Sequence[Path],
    *,
    project: str | None = None,
    entity: str | None = None,
    progress: Progress = silent,
) -> list[Synced]:
    """Call `sync` for each directory; one that another process uses or whose records are damaged is skipped.

    Raises:
        CheckpointError: nobody is logged in, or W&B does not answer.
    """
    results = []
    for directory in directories:
        skipped = Synced(directory, None, (), (), (), tuple(damaged_records(directory)))
        try:
            synced = None if skipped.problems else sync(directory, project=project, entity=entity, progress=progress)
            results.append(synced or skipped)
        except InUseError:
            in_use = (
                f"{directory}: another process is saving into it or publishing from it; sync again when it has ended"
            )
            results.append(replace(skipped, problems=(f"{in_use}, or with --watch while it trains",)))
    return results


def sync(
    directory: Path,
    *,
    project: str | None = None,
    entity: str | None = None,
    progress: Progress = silent,
    stop: threading.Event | None = None,
) -> Synced:
    """Send the logs and checkpoints of `directory` that W&B does not have yet.

    The target is `entity/project`; each defaults to the one that the directory's runs logged to. When `stop` is set, a
    log that is replayed and everything after it is left for another call.

    Raises:
        CheckpointError: nobody is logged in, W&B does not answer, or another process is saving into `directory`.
    """
    with lock_directory(directory):
        return DirectorySync(directory, project, entity, progress, stop).run()


class DirectorySync:
    """The synchronization of one directory."""

    def __init__(
        self,
        directory: Path,
        project: str | None,
        entity: str | None,
        progress: Progress,
        stop: threading.Event | None,
    ) -> None:
        self._directory = directory
        self._stop = stop
        self._progress = progress
        self._publications = Publications.read(directory)
        self._problems: list[str] = []
        self._checkpoints = self._publishable()
        known_entity, known_project, self._collection = known_target(directory, self._publications, self._checkpoints)
        self._project = project or known_project
        # None means the default entity of the user who is logged in.
        self._entity = entity or known_entity or None
        self._has_new_target = bool(project or entity)
        self._destination = Destination(
            directory, self._collection, self._publications.tags, on_cpu=self._publications.on_cpu
        )

    def run(self) -> Synced:
        """Send the logs, then the checkpoints that are still missing, even if a log failed."""
        collection = self._read_collection()
        logs = [run.log for run in self._unsent_logs() if self._replay(run)]
        states = self._remote_states(collection)
        if different := [step for step, state in states.items() if state == "different"]:
            try:
                self._take_own_collection(collection, different[0])
                states = self._remote_states(self._read_collection())
            except CheckpointError as error:
                self._problems.append(str(error))
        if any(step > 0 and state == "equal" for step, state in states.items()):
            self._destination.may_add = True
        published = self._publish(self._staying([info for info in self._checkpoints if states[info.step] == "missing"]))
        withdraw_passed(collection, self._publications, self._checkpoints)
        on_wandb = sorted([step for step, state in states.items() if state == "equal"] + published)
        return Synced(
            self._directory,
            self._path(self._destination.collection),
            tuple(on_wandb),
            tuple(published),
            tuple(logs),
            tuple(self._problems),
        )

    def _check_goes_on(self) -> None:
        if self._stop is not None and self._stop.is_set():
            raise CheckpointError(f"{self._directory}: W&B did not take everything in time")

    def _publishable(self) -> list[CheckpointInfo]:
        """The complete checkpoints that W&B is to have; each that is damaged or of another trajectory is a problem."""
        record = TrajectoryRecord.needed(self._directory)
        found = list_checkpoints(self._directory)
        listed = {info.path for info in found}
        self._problems += [
            f"{path}: has no {MANIFEST}; the checkpoint is not published"
            for path in sorted(self._directory.iterdir())
            if step_of(path.name) is not None and path not in listed
        ]
        publishable = []
        for info in found:
            if info.source == "other":
                problem = f"{info.path}: has no {MANIFEST}"
            elif not info.complete:
                problem = info.problems[0]
            elif record is not None and info.fingerprint != record.fingerprint:
                theirs, ours = str(info.fingerprint)[:8], record.fingerprint[:8]
                problem = f"{info.path}: belongs to trajectory {theirs}, the directory to {ours}"
            else:
                publishable.append(info)
                continue
            self._problems.append(f"{problem}; the checkpoint is not published")
        return [info for info in publishable if info.step not in self._publications.only_here]

    def _staying(self, missing: list[CheckpointInfo]) -> list[CheckpointInfo]:
        """`missing`, or nothing and a problem as long as the schedule of the training may delete some of them."""
        record = TrajectoryRecord.read_if_any(self._directory)
        if not missing or record is None or not record.may_thin:
            return missing
        self._problems.append(withheld(self._directory))
        return []

    def _path(self, name: str) -> str:
        return "/".join(filter(None, (self._entity, self._project, name)))

    def _read_collection(self) -> Collection | None:
        try:
            collection = Collection.read(Reference(self._entity, self._project, self._destination.collection))
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
        try:
            held = self._held(run)
        except Exception as error:  # noqa: BLE001 - the client documents no set of exceptions
            self._problems.append(f"{run.log}: W&B could not be asked for its run ({first_line(error)})")
            return False
        done = replay(run, target, self._collections(), self._stop, held)
        self._check_goes_on()
        self._progress(f"log of {run.log.parent.name}", 1, 1)
        if done.is_empty:
            # The run was killed before W&B's client wrote a record, or has just begun. Without a mark, since W&B does
            # not have the run: a mark would stand for a run that was deleted there.
            return False
        if reason := self._why_incomplete(run, done):
            self._problems.append(f"{run.log}: {reason}")
            return False
        run.mark_synced()
        return True

    def _held(self, run: WandbRun) -> Held | None:
        """W&B's copy of the run of this log, which an interrupted and resumed training has continued."""
        parts = self._publications.runs.get(run.id, ())
        later = parts[parts.index(run) + 1 :] if run in parts else ()
        return Held.of(self._run_path(run), is_later_there=any(map(was_on_wandb, later)))

    def _run_path(self, run: WandbRun) -> str:
        return "/".join(filter(None, (self._entity, self._project if self._has_new_target else run.project, run.id)))

    def _collections(self) -> set[str]:
        """The collections that this directory has published to."""
        names = {published.collection for published in self._publications.published.values()}
        return names | {self._destination.collection, self._collection}

    def _why_incomplete(self, run: WandbRun, replayed: Replay) -> str | None:
        """Why W&B does not have the whole log of `run`; None if W&B has it."""
        lines = replayed.output.splitlines()
        errors = [line for line in lines if "ERROR" in line] or lines[-1:]
        if not replayed.is_sent or self._state(run) not in _ENDED:
            return f"'wandb sync' did not send the whole log ({' '.join(errors).strip() or 'no output'})"
        # The log of a killed run has no more records.
        goes_on = replayed.is_torn and is_live(run.log)
        return "the log ends in the middle of a record; sync again after the run" if goes_on else None

    def _remote_states(self, collection: Collection | None) -> dict[int, _State]:
        held = {checkpoint.step: checkpoint for checkpoint in collection.checkpoints} if collection else {}
        ended_at = (collection.final_step if collection else None) or 0
        return {info.step: self._remote_state(info, held.get(info.step), ended_at) for info in self._checkpoints}

    def _remote_state(self, info: CheckpointInfo, held: RemoteCheckpoint | None, ended_at: int) -> _State:
        """Whether W&B holds `info` byte for byte, which is recorded; a damaged checkpoint is added to the problems."""
        if held is None:
            return "missing"
        revive(held.handle)
        if self._publications.published.get(info.step) != Published(held.artifact, held.digest):
            try:
                checked = CheckedArtifact.of(Publication.of(info, self._publications), self._destination.collection)
            except DamagedError as error:
                self._problems.append(f"{error}; the checkpoint is not published")
                return "damaged"
            match compare_with(held.handle, checked):
                case "different":
                    return "different"
                case "damaged":
                    return "missing"
            add_published(self._directory, info.step, Published(held.artifact, held.digest))
        return "equal" if held.final or not info.final or ended_at > info.step else "missing"

    def _take_own_collection(self, collection: Collection | None, step: int) -> None:
        """Publish to a collection of the directory's own, because W&B holds other bytes as `step`."""
        (held,) = [checkpoint for checkpoint in collection.checkpoints if checkpoint.step == step] if collection else []
        runs = [self._publications.run_of.get(step), *self._publications.runs, f"local-{secrets.token_hex(4)}"]
        self._destination.take_own(next(filter(None, runs)), difference_at(step, held.artifact))

    def _publish(self, missing: Sequence[CheckpointInfo]) -> list[int]:
        """Log `missing` in step order, each to the run that saved it; stop at the first failure of W&B."""
        self._check_goes_on()
        published: list[int] = []
        done = 0
        for run_id, infos in groupby(missing, key=lambda info: self._publications.run_of.get(info.step)):
            publications = [Publication.of(info, self._publications) for info in infos]
            try:
                with self._attached(run_id) as run:
                    self._progress(f"checkpoint {publications[0].step}", done, len(missing))
                    for publication, result in PublicationPipeline(self._destination, run).publish(publications):
                        done += 1
                        self._progress(f"checkpoint {publication.step}", done, len(missing))
                        if isinstance(result, DamagedError):
                            self._problems.append(f"{result}; the checkpoint is not published")
                            continue
                        published.append(publication.step)
                        self._entity = result.artifact.partition("/")[0]
                    self._destination.remove_duplicates(run)
            except Exception as error:  # noqa: BLE001 - the client documents no set of exceptions
                self._problems.append(f"{missing[done].path}: publishing failed ({first_line(error)})")
                break
        return published

    @contextmanager
    def _attached(self, run_id: str | None) -> Iterator[Any]:
        """Resume the W&B run `run_id` without logging anything about this process; without an id start a new run."""
        known = self._publications.runs.get(run_id or "")
        state = self._state(known[-1]) if known else None
        if known and state is None and was_on_wandb(known[-1]) and not self._has_new_target:
            run_id = None  # The run was deleted on W&B, which gives no id a second time.
        new = {"name": RUN_NAME.fit(f"sync-{self._directory.resolve().name}"), "job_type": "sync"}
        more: dict[str, Any] = {} if state else new | {"group": self._destination.collection}
        # A run without an end was killed.
        failed = known is not None and state != "finished" and not ended_well(known[-1].log)
        with attached_run(run_id, state, failed=failed, project=self._project, entity=self._entity, **more) as run:
            yield run

    def _state(self, run: WandbRun) -> str | None:
        """The state of `run` on W&B; None if W&B does not have the run."""
        import wandb

        try:
            return str(wandb.Api().run(self._run_path(run)).state)
        except (wandb.errors.Error, TimeoutError, ValueError):
            return None
