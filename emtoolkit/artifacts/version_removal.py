"""Removal of checkpoints from a collection on W&B: what may go, and how it goes.

A version that goes is marked first, then gets a time to live, and loses its aliases last: a failure in between leaves a
checkpoint that is listed, and the same call again finishes. Until its time is over W&B still has the version, without a
name. A server that keeps no time to live has the version deleted instead.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Collection as AnyCollection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from emtoolkit.artifacts.collection import PRUNED, PRUNED_STEPS, Collection, RemoteCheckpoint
from emtoolkit.artifacts.names import ARTIFACT_TAG
from emtoolkit.artifacts.retries import retried
from emtoolkit.errors import CheckpointError, first_line
from emtoolkit.progress import Progress, silent
from emtoolkit.schedules.steps import elided

# The aliases and the tags that publishing gives, beside the tags of the trajectory.
_OWN_ALIAS = re.compile(r"latest|final|step-[0-9]+|v[0-9]+")
_OWN_TAG = re.compile(r"step-[0-9]+")


@dataclass(frozen=True, slots=True)
class RemovedVersions:
    """The steps whose versions went: `deleted` at once, `expiring` after their time to live."""

    expiring: tuple[int, ...] = ()
    deleted: tuple[int, ...] = ()


def marks_of_people(collection: Collection, own_tags: AnyCollection[str] | None) -> dict[int, str]:
    """The steps with an alias or a tag that somebody gave by hand, each with the mark.

    `own_tags` are the tags of the trajectory; if they are None, those that every version has.
    """
    versions = collection.checkpoints
    if own_tags is None:
        tags = [{*_tags(version)} for version in versions]
        own_tags = set.intersection(*tags) if len(tags) > 1 else set()
    own = {ARTIFACT_TAG.fit(tag) for tag in own_tags}
    marks = {}
    for version in versions:
        aliases = [alias for alias in version.handle.aliases if not _OWN_ALIAS.fullmatch(alias)]
        others = [tag for tag in _tags(version) if tag not in own and not _OWN_TAG.fullmatch(tag)]
        if aliases or others:
            marks[version.step] = f"alias {aliases[0]} on W&B" if aliases else f"tag {others[0]!r} on W&B"
    return marks


def _tags(version: RemoteCheckpoint) -> list[str]:
    return list(getattr(version.handle, "tags", None) or ())


def recorded_as_pruned(collection: Collection) -> tuple[int, ...]:
    """The steps that were removed from the collection on purpose and are not there, ascending."""
    recorded = {step for version in collection.checkpoints for step in pruned_in(version.metadata)}
    return tuple(sorted(recorded - {version.step for version in collection.checkpoints}))


def pruned_in(metadata: Mapping[str, Any]) -> list[int]:
    """The steps in the record that the metadata of a version hold."""
    recorded = metadata.get(PRUNED_STEPS)
    return [step for step in recorded if isinstance(step, int)] if isinstance(recorded, list | tuple) else []


def check_not_training(collection: Collection) -> None:
    """Check that no run is about to add versions.

    Raises:
        CheckpointError: the run of the newest version has not ended, or W&B does not answer.
    """
    newest = max(collection.checkpoints, key=lambda version: _number(version.artifact), default=None)
    if newest is None:
        return
    run = _asked(collection.name, newest.handle.logged_by)
    if run is not None and run.state == "running":
        raise CheckpointError(
            f"{collection.name}: run {run.id} is still running and publishes to the collection; prune it after the run"
        )


def _number(artifact: str) -> int:
    version = artifact.rpartition(":v")[2]
    return int(version) if version.isdecimal() else -1


def linked_to(version: RemoteCheckpoint) -> str | None:
    """The registry or the portfolio that the version is linked to; None if there is none.

    Raises:
        CheckpointError: W&B does not answer.
    """
    links = _asked(version.artifact, lambda: list(version.handle.linked_artifacts))
    return str(links[0].qualified_name) if links else None


def _asked(place: str, ask: Callable[[], Any]) -> Any:
    try:
        return retried(ask)
    except Exception as error:  # the client documents no set of exceptions
        raise CheckpointError(
            f"{place}: W&B did not answer ({first_line(error)}); run the same command again"
        ) from error


def remove_versions(
    collection: Collection, going: Sequence[RemoteCheckpoint], days: float, progress: Progress = silent
) -> RemovedVersions:
    """Remove `going` from `collection`, each with `days` to live, or at once with 0 days.

    Raises:
        CheckpointError: W&B failed; the message says what was removed and what was not.
    """
    going = sorted(going, key=lambda version: version.step)
    gone: list[tuple[int, bool]] = []
    steps = {version.step for version in going}
    kept = [version for version in collection.checkpoints if version.step not in steps]
    try:
        _record(kept, steps)
        for version in going:
            progress("versions on W&B", len(gone), len(going))
            gone.append((version.step, _remove(version.handle, days)))
    except Exception as error:  # the client documents no set of exceptions
        done = f"steps {elided([step for step, _ in gone], 60)} are removed" if gone else "nothing is removed"
        left = elided([version.step for version in going[len(gone) :]], 60)
        raise CheckpointError(
            f"{collection.name}: W&B failed ({first_line(error)}): {done}, steps {left} are still there; run the same "
            "command again to finish"
        ) from error
    expiring = tuple(step for step, expires in gone if expires)
    return RemovedVersions(expiring, tuple(step for step, expires in gone if not expires))


def _record(kept: Sequence[RemoteCheckpoint], steps: Iterable[int]) -> None:
    """Write the pruned steps into the metadata of the first version that stays, with those of earlier prunes."""
    if not kept:
        return
    known = {step for version in kept for step in pruned_in(version.metadata)}
    home = min(kept, key=lambda version: version.step).handle
    recorded = sorted(known | {*steps})
    if home.metadata.get(PRUNED_STEPS) != recorded:
        home.metadata[PRUNED_STEPS] = recorded
        home.save()


def _remove(handle: Any, days: float) -> bool:
    """Remove one version; return whether it has a time to live, and false if it is deleted."""
    if days <= 0 or not _expires(handle, days):
        handle.delete(delete_aliases=True)
        return False
    handle.aliases = [alias for alias in handle.aliases if alias != "final" and not alias.startswith("step-")]
    handle.save()
    return True


def _expires(handle: Any, days: float) -> bool:
    """Mark the version as pruned and give it a time to live; return whether the server keeps the time."""
    handle.metadata[PRUNED] = True
    handle.ttl = timedelta(days=days)
    try:
        handle.save()
        return handle.ttl is not None
    except Exception as error:
        # A server that does not know the field says so; any other failure is one.
        if "ttl" in str(error).lower():
            return False
        raise


def revive(version: Any) -> None:
    """Keep a version that was pruned and is published again: W&B gives equal files the version that they had."""
    if PRUNED in version.metadata:
        del version.metadata[PRUNED]
        version.ttl = None
        version.save()
