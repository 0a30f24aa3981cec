"""The plan of a prune: the removals from a directory and from W&B, and why the rest stays. Nothing is changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.collection import Collection, Reference, RemoteCheckpoint
from emtoolkit.artifacts.mixture import check_is_one_training
from emtoolkit.artifacts.named_collection import named_collection
from emtoolkit.artifacts.version_removal import check_not_training, linked_to, marks_of_people, recorded_as_pruned
from emtoolkit.checkpoints.layout import RESUME_DIRECTORY, step_of
from emtoolkit.checkpoints.listing import CheckpointInfo, check_one_fingerprint, list_checkpoints, why_none_is_complete
from emtoolkit.checkpoints.measured import metrics_of
from emtoolkit.checkpoints.metric_values import Metrics
from emtoolkit.checkpoints.pruned import pruned_steps
from emtoolkit.checkpoints.publications import Place, Publications
from emtoolkit.checkpoints.report_uses import steps_of_reports
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.hub.names import is_hub
from emtoolkit.pruning.keep import Request, Steps, budget_notes, kept_steps
from emtoolkit.pruning.room import freed_bytes
from emtoolkit.schedules.steps import elided
from emtoolkit.shell_command import quoted_command
from emtoolkit.storage.atomic import TEMPORARY


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """The steps that stay, each with the reason, and those that go: checkpoints `here`, and `versions` on W&B.

    `steps_here` have a complete checkpoint in the directory. `freed` are the bytes that the disk gets back. `left_over`
    are directories that an interrupted prune or save left. `pruned` are the steps that an earlier prune removed.
    """

    reference: str
    steps: tuple[int, ...]
    kept: Mapping[int, str]
    here: tuple[CheckpointInfo, ...] = ()
    versions: tuple[RemoteCheckpoint, ...] = ()
    freed: int = 0
    pruned: tuple[int, ...] = ()
    left_over: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    directory: Path | None = None
    collection: Collection | None = field(default=None, repr=False)
    steps_here: frozenset[int] = frozenset()

    @property
    def going(self) -> tuple[int, ...]:
        """The steps that lose a copy, ascending."""
        return tuple(sorted({info.step for info in self.here} | {version.step for version in self.versions}))

    @property
    def freed_on_wandb(self) -> int:
        """The bytes of the versions that go."""
        return sum(version.bytes for version in self.versions)


def plan_prune(reference: str, request: Request, only: Place | None = None) -> PrunePlan:
    """The plan of `request` for the directory or the collection `reference`; with `only` for that place alone.

    Raises:
        CheckpointError: there is no such trajectory, it has checkpoints of another tool or of several trainings,
            nothing would be left, W&B does not answer, or a run is still publishing to the collection.
        UserError: the request cannot be read.
    """
    directory = Path(reference)
    if is_hub(reference) and not directory.is_dir():
        command = quoted_command("emtoolkit", "download", reference, "--to", "DIR")
        raise CheckpointError(
            f"{reference}: is on the Hugging Face hub, where emtoolkit removes nothing; {command} makes a directory "
            "that can be pruned"
        )
    if directory.is_dir() or reference.count("/") not in (1, 2):
        return _of_directory(reference, directory, request, only)
    if only == "here":
        raise CheckpointError(f"{reference}: is a collection on W&B; leave out '--only here'")
    return _of_collection(reference, request)


def _of_directory(reference: str, directory: Path, request: Request, only: Place | None) -> PrunePlan:
    found = list_checkpoints(directory)
    _check_is_ours(directory, found)
    publications = Publications.read(directory)
    record = TrajectoryRecord.needed(directory)
    complete = _complete(directory, found)
    notes = [f"step {info.step} is damaged and left alone: {info.problems[0]}" for info in found if not info.complete]
    collection, versions = None, list[RemoteCheckpoint]()
    if only != "here" and (name := _own_collection(publications, only, directory)):
        collection = _own(name)
        versions, others = _of_this_directory(collection, publications, {info.step for info in complete})
        if others:
            notes.append(f"{collection.name}: steps {elided(others, 60)} are of other runs and stay")
    ended_at = next((info.step for info in complete if info.final), None) if record is None else record.ended_at
    pruned = pruned_steps(directory, publications)
    steps = Steps(
        tuple(sorted({info.step for info in complete} | {version.step for version in versions})),
        pruned,
        ended_at,
        None if record is None else record.total_steps,
        publications.asked,
    )
    protected = _steps_of_reports(reference, *_collections(publications, collection))
    if collection is not None:
        protected |= marks_of_people(collection, publications.tags)
    if ended_at is None and (resume := _newest_resume_step(directory)) is not None:
        protected[resume] = "the resume state is at this step"

    def metrics() -> Metrics:
        fingerprint = record.fingerprint if record else None
        return metrics_of(reference, publications.metadata, fingerprint=fingerprint)

    kept = kept_steps(request, steps, protected, metrics)
    going, linked = _without_linked([version for version in versions if version.step not in kept])
    kept |= linked
    notes += budget_notes(request, kept)
    if collection is not None and len(going) == len(collection.checkpoints):
        raise CheckpointError(f"{collection.name}: nothing would be left on W&B; name a step that W&B has in --keep")
    here = [info for info in complete if info.step not in kept] if only != "wandb" else []
    freed = freed_bytes(info.path for info in here)
    if publications.store is not None and freed < sum(info.bytes for info in here):
        notes.append(
            f"files that the store {publications.store} holds, too, free nothing here; prune the store as well"
        )
    return PrunePlan(
        reference,
        steps.complete,
        dict(sorted(kept.items())),
        tuple(here),
        tuple(going),
        freed,
        pruned,
        tuple(sorted(directory.glob(f"{TEMPORARY}*"))),
        tuple(notes),
        directory,
        collection,
        frozenset(info.step for info in complete),
    )


def _of_this_directory(
    collection: Collection, publications: Publications, complete: set[int]
) -> tuple[list[RemoteCheckpoint], list[int]]:
    """The versions of the steps that the directory has or had, and the steps of the other versions."""
    pending = {step for step, places in publications.pruned.items() if "wandb" in places}
    own = complete | {*publications.published} | pending
    versions = [version for version in collection.checkpoints if version.step in own]
    return versions, [version.step for version in collection.checkpoints if version.step not in own]


def _of_collection(reference: str, request: Request) -> PrunePlan:
    collection = _prunable(named_collection(reference))
    complete = tuple(version.step for version in collection.checkpoints)
    totals = [total for version in collection.checkpoints if (total := version.record.total_steps) is not None]
    pruned = recorded_as_pruned(collection)
    steps = Steps(complete, pruned, collection.final_step, max(totals, default=None))
    protected = _steps_of_reports(reference, collection.name) | marks_of_people(collection, None)

    def metrics() -> Metrics:
        return metrics_of(collection.name, {version.step: version.metadata for version in collection.checkpoints})

    kept = kept_steps(request, steps, protected, metrics)
    going, linked = _without_linked([version for version in collection.checkpoints if version.step not in kept])
    return PrunePlan(
        collection.name,
        complete,
        dict(sorted({**kept, **linked}.items())),
        versions=tuple(going),
        pruned=pruned,
        notes=tuple(budget_notes(request, kept)),
        collection=collection,
    )


def _steps_of_reports(*trajectories: str) -> dict[int, str]:
    """The steps that reports on any of the `trajectories` rest on, each with the reason that it stays."""
    found = [steps_of_reports(trajectory) for trajectory in trajectories]
    return {step: f"report {report}" for of in reversed(found) for step, report in of.items()}


def _collections(publications: Publications, own: Collection | None) -> list[str]:
    """The collections that hold checkpoints of a directory: reports on them rest on the checkpoints here, too."""
    names = [published.artifact.rpartition(":")[0] for published in publications.published.values()]
    return list(dict.fromkeys([*names, *([own.name] if own is not None else [])]))


def _check_is_ours(directory: Path, found: Sequence[CheckpointInfo]) -> None:
    for info in found:
        if info.source == "other":
            raise CheckpointError(
                f"{info.path}: was saved by another tool, which leaves no record to make it again from; delete such "
                "checkpoints yourself"
            )
    fingerprints: Mapping[int, Any] = {info.step: info.fingerprint for info in found}
    check_one_fingerprint(str(directory), fingerprints, "Keep each training in a directory of its own")


def _complete(directory: Path, found: Sequence[CheckpointInfo]) -> list[CheckpointInfo]:
    complete = [info for info in found if info.complete]
    if not complete:
        is_checkpoint = step_of(directory.resolve().name) is not None
        where = "; give the directory of its run" if is_checkpoint else why_none_is_complete(directory)
        raise CheckpointError(f"{directory}: there is no complete checkpoint, so nothing can be pruned{where}")
    return complete


def _own(name: str) -> Collection:
    try:
        return _prunable(Collection.read(Reference.parse(name)))
    except CheckpointError as error:
        raise CheckpointError(f"{error}, or prune the directory alone with --only here") from error


def _own_collection(publications: Publications, only: Place | None, directory: Path) -> str | None:
    """The collection that the runs of a directory published to; None where there is none.

    A download has no runs: its collection is somebody else's, and only named itself is it pruned.
    """
    artifacts = [published.artifact for published in publications.published.values()]
    place = next((artifact.rpartition(":")[0] for artifact in reversed(artifacts)), None)
    if place is None and publications.collection is not None and publications.runs:
        newest = [*publications.runs.values()][-1][-1]
        pending = any("wandb" in places for places in publications.pruned.values())
        if newest.entity and newest.project and pending:
            place = f"{newest.entity}/{newest.project}/{publications.collection}"
    is_own = bool(publications.runs) or any(published.created for published in publications.published.values())
    if only == "wandb" and (place is None or not is_own):
        raise CheckpointError(
            f"{directory}: no run of the directory published its checkpoints; name the collection, entity/project/NAME"
        )
    return place if is_own else None


def _prunable(collection: Collection) -> Collection:
    if not collection.checkpoints:
        raise CheckpointError(f"{collection.name}: there is no checkpoint, so nothing can be pruned")
    check_is_one_training(collection)
    check_not_training(collection)
    return collection


def _without_linked(versions: Sequence[RemoteCheckpoint]) -> tuple[list[RemoteCheckpoint], dict[int, str]]:
    """The `versions` that nobody has linked to a registry or a portfolio, and the steps of the others."""
    links = {version.step: link for version in versions if (link := linked_to(version)) is not None}
    going = [version for version in versions if version.step not in links]
    return going, {step: f"linked to {link}" for step, link in links.items()}


def _newest_resume_step(directory: Path) -> int | None:
    home = directory / RESUME_DIRECTORY
    found = [step_of(path.name) for path in home.iterdir()] if home.is_dir() else []
    return max((step for step in found if step is not None), default=None)
