"""`publications.jsonl`: the metadata of each checkpoint in a directory, and its version on W&B.

Each line is one event, so appending an event costs little and cannot damage earlier events; a line that a kill cut
short is ignored. A `saved` event is written before its checkpoint, so only the directory shows which checkpoints exist.
A `metrics` event follows when the step has been logged and evaluated.
For a step without a `published` event `emtoolkit sync` asks W&B.
"""

import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from emtoolkit.checkpoints.saved_for import SavedFor, reasons_of, with_reason
from emtoolkit.errors import CheckpointError
from emtoolkit.json_files import LARGEST_JSON, parse_json
from emtoolkit.regular_files import NO_SYMLINK, read_regular
from emtoolkit.storage.atomic import sync_file

PUBLICATIONS = "publications.jsonl"
# Where a copy of a checkpoint is: in the directory, or on W&B.
Place = Literal["here", "wandb"]


@dataclass(frozen=True, slots=True)
class WandbRun:
    """A W&B run that logged to this directory.

    `log` is the file that `wandb sync` replays. `entity` is empty for an offline run, which has no entity yet.
    """

    id: str
    entity: str
    project: str
    log: Path

    @classmethod
    def of(cls, run: Any) -> "WandbRun":
        """The record of the active `wandb.Run`."""
        return cls(str(run.id), str(run.entity or ""), str(run.project or ""), Path(run.settings.sync_file))

    @property
    def name(self) -> str:
        """The name of the directory of the log, which no other part of the run has."""
        return self.log.parent.name

    @property
    def is_synced(self) -> bool:
        """Whether W&B has the whole log, by the mark that `wandb sync` leaves and reads."""
        return self._mark.exists()

    def mark_synced(self) -> None:
        """Leave the mark of `wandb sync`."""
        self._mark.touch()

    def unmark_synced(self) -> None:
        """Remove the mark of `wandb sync`, so that it replays the log again."""
        self._mark.unlink(missing_ok=True)

    @property
    def _mark(self) -> Path:
        return self.log.with_suffix(".wandb.synced")


@dataclass(frozen=True, slots=True)
class Published:
    """A version on W&B, `entity/project/collection:vN`, and W&B's digest of it.

    `created` is true if this directory made the version, false if another run had published the same bytes before.
    """

    artifact: str
    digest: str
    created: bool = field(default=False, compare=False)

    @property
    def collection(self) -> str:
        """The name of the collection, without entity and project."""
        return self.artifact.rpartition(":")[0].rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Difference:
    """A resumed run computed a step again, and other weights than the checkpoint of the step holds.

    `largest` is the largest absolute difference of a weight, and `tensor` the tensor that holds the weight. `share` is
    the norm of all differences as a share of the way from the first checkpoint, None where that is not known.
    """

    largest: float
    tensor: str
    share: float | None = None

    def __str__(self) -> str:
        share = "" if self.share is None else f", {100 * self.share:.2g} % of the way from the first checkpoint"
        return f"up to {self.largest:.3g} in {self.tensor}{share}"


@dataclass(frozen=True, slots=True)
class Publications:
    """The content of `publications.jsonl`.

    `metadata`, `run_of` and `published` have one entry for each step: the metadata and the run id of its first save,
    and its version on W&B. The first save counts because W&B keeps the first of two equal versions, with its metadata.
    `collection` and `tags` are the name and the tags under which the checkpoints are published; `has_own_collection` is
    true if the bytes of this directory differ from those that W&B held under the name of the trajectory. `on_cpu` is
    false if the directory was trained on a GPU. `runs` are the W&B runs by id, each with all of its logs, and
    `newest_run` is the one that began last. `saved_for` says of each step why its checkpoint is there.
    `differences` has an entry for each step that a resumed run computed again with other weights: the largest
    difference; the checkpoint that was there has stayed. `settled` are the steps at which nothing more is logged,
    `asked` those that somebody asked a training to save, and `answers` its answers, oldest first: the step, the token
    of the request, and whether the step was saved.
    `pruned` has the places from which `emtoolkit prune` removed a step last, or was about to; a step that is in the
    directory all the same was made again. `off_wandb` are the steps that were pruned on W&B and neither saved nor
    published again since. `store` is the directory of the trajectory store that a
    run with reuse was filled from, and `reused` are the steps that an earlier training had saved there.
    """

    collection: str | None = None
    has_own_collection: bool = False
    on_cpu: bool = True
    tags: tuple[str, ...] = ()
    metadata: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    run_of: Mapping[int, str] = field(default_factory=dict)
    published: Mapping[int, Published] = field(default_factory=dict)
    runs: Mapping[str, tuple[WandbRun, ...]] = field(default_factory=dict)
    differences: Mapping[int, Difference] = field(default_factory=dict)
    newest_run: WandbRun | None = None
    asked: frozenset[int] = frozenset()
    settled: frozenset[int] = field(default=frozenset(), kw_only=True)
    answers: tuple[tuple[int, str, bool], ...] = ()
    pruned: Mapping[int, frozenset[str]] = field(default_factory=dict)
    off_wandb: frozenset[int] = frozenset()
    store: Path | None = None
    reused: frozenset[int] = frozenset()
    saved_for: Mapping[int, SavedFor] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "Publications":
        """The content of the file in `directory`; empty if there is no file.

        Raises:
            CheckpointError: the file cannot be read.
        """
        path = directory / PUBLICATIONS
        try:
            lines = read_regular(path, LARGEST_JSON, follow=False).splitlines()
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({_problem(error)})") from error
        collection: str | None = None
        is_own, on_cpu = False, True
        tags: tuple[str, ...] = ()
        metadata, run_of, published = dict[int, Any](), dict[int, str](), dict[int, Published]()
        metrics = dict[int, Any]()
        runs, newest = dict[str, tuple[WandbRun, ...]](), None
        differences = dict[int, Difference]()
        events = [event for event in map(event_in, lines) if event]
        for event in events:
            match event:
                case {"event": "collection", "name": str(name), "tags": list(names)}:
                    collection, is_own = name, event.get("own") is True
                    tags = tuple(name for name in names if isinstance(name, str))
                    on_cpu = on_cpu and event.get("on_cpu") is not False
                case {"event": "run", "id": str(run), "entity": str(entity), "project": str(project), "log": str(log)}:
                    # `sync` reads the log and leaves a mark beside it, so that the path must be one of a log.
                    if not log.endswith(".wandb") or ".." in Path(log).parts:
                        continue
                    newest = WandbRun(run, entity, project, directory / log)
                    runs[run] = (*(part for part in runs.get(run, ()) if part != newest), newest)
                case {"event": "saved", "step": int(step), "metadata": dict(values), "run": run}:
                    metadata.setdefault(step, values)
                    if isinstance(run, str):
                        run_of.setdefault(step, run)
                case {"event": "metrics", "step": int(step), "metrics": dict(values)}:
                    metrics.setdefault(step, values)
                case {"event": "published", "step": int(step), "artifact": str(artifact), "digest": str(digest)}:
                    before = published.get(step)
                    created = before is not None and before.created and before.artifact == artifact
                    published[step] = Published(artifact, digest, created or event.get("created") is True)
                case {"event": "difference", "step": int(step), "largest": float(largest), "tensor": str(tensor)}:
                    earlier = differences.get(step)
                    if earlier is None or largest > earlier.largest:
                        share = event.get("share")
                        differences[step] = Difference(largest, tensor, share if isinstance(share, float) else None)
        saved_for = reasons_of(events)
        metadata = {
            step: {**with_reason(values, saved_for[step]), **metrics.get(step, {})} for step, values in metadata.items()
        }
        pruned, off_wandb = _prunings(events)
        published = {step: each for step, each in published.items() if step not in off_wandb}
        about_runs = (collection, is_own, on_cpu, tags, metadata, run_of, published, runs, differences, newest)
        more = (*_requests(events), pruned, off_wandb, *_reuse(events), saved_for)
        return cls(*about_runs, *more, settled=frozenset(metrics))

    @property
    def only_here(self) -> frozenset[int]:
        """The steps that were pruned on W&B alone, so that nothing publishes them again."""
        return frozenset(step for step in self.off_wandb if self.pruned[step] == {"wandb"})


def add_wanted(directory: Path, steps: Sequence[int]) -> None:
    """Record that the pruned `steps` are wanted again: a training saves them as if they had never been there."""
    for step in steps:
        _append(directory, {"event": "wanted", "step": step})


def _requests(events: Sequence[Any]) -> tuple[frozenset[int], tuple[tuple[int, str, bool], ...]]:
    """`asked` and `answers` of `Publications`."""
    asked, answers = set[int](), list[tuple[int, str, bool]]()
    for event in events:
        match event:
            case {"event": "asked", "step": int(step)}:
                asked.add(step)
            case {"event": "answered", "step": int(step), "request": str(token), "saved": bool(is_saved)}:
                answers.append((step, token, is_saved))
    return frozenset(asked), tuple(answers)


def add_collection(directory: Path, name: str, tags: Sequence[str], *, own: bool = False, on_cpu: bool = True) -> None:
    """Record the name and the tags under which the checkpoints in `directory` are published; see `Publications`."""
    more = ({"own": True} if own else {}) | ({} if on_cpu else {"on_cpu": False})
    _append(directory, {"event": "collection", "name": name, "tags": list(tags)} | more)


def add_run(directory: Path, run: WandbRun) -> None:
    """Record that `run` logs to `directory`. The path of a log inside `directory` is relative, so both can be moved."""
    log = run.log.absolute()
    if log.is_relative_to(directory.absolute()):
        log = log.relative_to(directory.absolute())
    _append(directory, {"event": "run", "id": run.id, "entity": run.entity, "project": run.project, "log": str(log)})


def add_saved(directory: Path, step: int, metadata: Mapping[str, Any], run: str | None) -> None:
    """Record the metadata of the checkpoint of `step`, which the W&B run `run`, if any, is about to save."""
    _append(directory, {"event": "saved", "step": step, "metadata": dict(metadata), "run": run})


def add_saved_for(directory: Path, step: int, reason: SavedFor) -> None:
    """Record one more reason for the checkpoint of `step`, which is saved already."""
    _append(directory, {"event": "saved for", "step": step, "saved_for": reason})


def add_metrics(directory: Path, step: int, metrics: Mapping[str, Any]) -> None:
    """Record what was logged at `step`, whose checkpoint is saved: more keys of its metadata."""
    _append(directory, {"event": "metrics", "step": step, "metrics": dict(metrics)})


def add_published(directory: Path, step: int, published: Published) -> None:
    """Record the version on W&B of the checkpoint of `step`."""
    event = {"event": "published", "step": step, "artifact": published.artifact, "digest": published.digest}
    _append(directory, event | ({"created": True} if published.created else {}))


def add_difference(directory: Path, step: int, difference: Difference) -> None:
    """Record that a resumed run computed `step` again, with other weights than its checkpoint holds."""
    _append(directory, {"event": "difference", "step": step, **asdict(difference)})


def add_asked(directory: Path, step: int) -> None:
    """Record that somebody asked the training to save `step`, so that its checkpoint stays."""
    _append(directory, {"event": "asked", "step": step})


def add_answer(directory: Path, step: int, token: str, *, saved: bool) -> None:
    """Record that the request `token` was answered with the checkpoint of `step`, and whether that was `saved`."""
    _append(directory, {"event": "answered", "step": step, "request": token, "saved": saved})


def add_pruned(directory: Path, steps: Sequence[int], places: Sequence[Place]) -> None:
    """Record that `steps` are about to be removed from `places`; the record is on the disk when this returns."""
    for step in steps:
        _append(directory, {"event": "pruned", "step": step, "from": list(places)})
    sync_file(directory / PUBLICATIONS)


def _prunings(events: Sequence[Any]) -> tuple[dict[int, frozenset[str]], frozenset[int]]:
    """`pruned` and `off_wandb` of `Publications`."""
    pruned, off_wandb = dict[int, frozenset[str]](), set[int]()
    for event in events:
        match event:
            case {"event": "pruned", "step": int(step), "from": list(places)}:
                pruned[step] = frozenset(place for place in places if place in ("here", "wandb"))
                if "wandb" in pruned[step]:
                    off_wandb.add(step)
            case {"event": "wanted", "step": int(step)}:
                pruned.pop(step, None)
                off_wandb.discard(step)
            case {"event": "saved" | "published", "step": int(step)}:
                off_wandb.discard(step)
    return pruned, frozenset(off_wandb)


def add_store(directory: Path, store: Path) -> None:
    """Record that the checkpoints in `directory` are those of `store`, a directory of the trajectory store."""
    _append(directory, {"event": "store", "path": str(store)})


def add_reused(directory: Path, step: int) -> None:
    """Record that an earlier training had saved the checkpoint of `step`, and that this run takes it."""
    _append(directory, {"event": "reused", "step": step})


def _reuse(events: Sequence[Any]) -> tuple[Path | None, frozenset[int]]:
    """`store` and `reused` of `Publications`."""
    places = [event["path"] for event in events if event.get("event") == "store" and isinstance(event.get("path"), str)]
    reused = frozenset(event["step"] for event in events if event.get("event") == "reused" and "step" in event)
    return Path(places[-1]) if places else None, reused


def _append(directory: Path, event: Mapping[str, Any]) -> None:
    path = directory / PUBLICATIONS
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | NO_SYMLINK, 0o666)
        try:
            # A newline ends a torn last line. One write per event, because several threads may append at the same time.
            line = b"\n" * (not _ends_in_newline(descriptor)) + json.dumps(event).encode() + b"\n"
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"{path}: could not be written ({_problem(error)})") from error


def _problem(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "the file is a symlink, which is not followed; remove the symlink"
    return error.strerror or str(error)


def _ends_in_newline(descriptor: int) -> bool:
    if os.lseek(descriptor, 0, os.SEEK_END) == 0:
        return True
    os.lseek(descriptor, -1, os.SEEK_END)
    return os.read(descriptor, 1) == b"\n"


def event_in(line: bytes) -> Any:
    """The event in `line`; None for a torn line and for an event of no step."""
    try:
        event = parse_json(line, finite=False)
    except ValueError:
        return None
    step = event.get("step", 0) if isinstance(event, dict) else None
    return event if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None
