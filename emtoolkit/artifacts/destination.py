"""The collection on W&B that a directory publishes to: that of its trajectory, or one of its own.

Runs share the collection of their trajectory while every step that both hold has the same bytes. A run whose step
differs is another training: the alias `step-N` stays where it is, and all checkpoints of the run's directory go to a
collection of their own, whose name ends in the run's id. `publications.jsonl` records the change, so later runs in the
same directory and `emtoolkit sync` keep to it.

A training on a GPU may give other bytes although everything that decides it is equal. It adds a step to a collection
that another run began only after both had the same bytes at a trained step.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Collection as AnyCollection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emtoolkit.artifacts.collection import PUBLISHED_AGAIN, file_digests, step_of_version
from emtoolkit.artifacts.digest_algorithm import Algorithm, algorithm_for, algorithm_of
from emtoolkit.artifacts.names import ARTIFACT_TAG
from emtoolkit.artifacts.publication import (
    CheckedArtifact,
    DamagedError,
    Publication,
    collection_name,
    collection_tags,
    own_collection_name,
)
from emtoolkit.artifacts.version_removal import revive
from emtoolkit.artifacts.versions import all_versions, find_version
from emtoolkit.artifacts.withdrawal import keep_as_step, withdraw
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.manifest import MANIFEST
from emtoolkit.checkpoints.publications import Publications, Published, add_collection, add_published
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError, first_line

logger = logging.getLogger(__name__)


def compare_with(version: Any, checked: CheckedArtifact) -> Literal["same", "damaged", "different"]:
    """Compare a version on W&B with a checkpoint; `damaged` if the version differs from its own, equal manifest.

    Files that only the version has do not count: older versions of emtoolkit published the whole directory.
    """
    if version.digest == checked.artifact.digest:
        return "same"
    theirs = file_digests(version)
    if all(checked.has(name, theirs.get(name)) for name in checked.names):
        return "same"
    return "damaged" if checked.has(MANIFEST, theirs.get(MANIFEST)) else "different"


def difference_at(step: int, held: str) -> str:
    """The reason for a collection of one's own: W&B holds other bytes, the version `held`, as `step`."""
    return f"step {step} differs from the checkpoint that another run published ({held}), so this is another training"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A publication whose files are hashed, and what W&B held when it was asked.

    `held` is the version of its step in `collection`. `newest_of_others` is the newest version there, if a run of
    another directory made it, and None where that does not matter.
    """

    publication: Publication
    checked: CheckedArtifact
    collection: str
    held: Any
    newest_of_others: str | None


@dataclass(frozen=True, slots=True)
class Started:
    """An artifact that was logged and may not be committed yet; `is_new` unless W&B held its step."""

    publication: Publication
    checked: CheckedArtifact
    logged: Any
    is_new: bool


class Destination:
    """The collection that the checkpoints in `directory` go to; `shared` is the collection of their trajectory.

    `on_cpu` says whether the training gives the same bytes again.
    """

    def __init__(self, directory: Path, shared: str, tags: tuple[str, ...], *, on_cpu: bool) -> None:
        publications = Publications.read(directory)
        self._directory = directory
        self._tags = tags
        self._has_own = publications.has_own_collection
        # Whether a step that W&B lacks may go to a collection that another run began.
        self.may_add = on_cpu
        self._api: Any = None
        self._lock = threading.Lock()
        # Whether the checkpoints of an earlier collection are in the directory's own.
        self._has_left_nothing = False
        # The versions that this destination made.
        self._created: dict[str, int] = {}
        self._algorithms: dict[str, Algorithm] = {}
        self.collection = publications.collection if self._has_own and publications.collection else shared

    @classmethod
    def of(cls, directory: Path, identity: Identity, *, on_cpu: bool = True) -> "Destination":
        """The destination of a directory that holds the trajectory of `identity`."""
        return cls(directory, collection_name(identity), collection_tags(identity), on_cpu=on_cpu)

    def log(self, run: Any, publication: Publication) -> Published | None:
        """Log `publication` to `run`, and return its version on W&B; None for an offline run, which writes to its log.

        Raises:
            DamagedError: the files of the checkpoint differ from its manifest.
            CheckpointError: W&B holds other bytes under this step of the directory's own collection.
            Exception: whatever W&B's client raises.
        """
        if run.offline:
            checked = CheckedArtifact.of(publication, self.collection)
            run.log_artifact(checked.artifact, aliases=publication.aliases, tags=self._tags_of(publication))
            return None
        return self.finish(self.start(run, self.prepare(run, publication)))

    def prepare(self, run: Any, publication: Publication) -> Prepared:
        """Hash the files of `publication`, and ask W&B what it holds; any thread may prepare any number of them.

        Raises:
            DamagedError: the files of the checkpoint differ from its manifest.
            Exception: whatever W&B's client raises.
        """
        collection = self.collection
        held = self._find(run, f"step-{publication.step}")
        # Equal digests make the version that is there out of an equal artifact, and no second one.
        algorithm = self._algorithm(run) if held is None else algorithm_of(held)
        checked = CheckedArtifact.of(publication, collection, algorithm)
        is_ours = held is not None or self.may_add or self._has_own
        return Prepared(publication, checked, collection, held, None if is_ours else self._newest_of_others(run))

    def start(self, run: Any, prepared: Prepared, settle: Callable[[], None] = lambda: None) -> Started:
        """Log the artifact, in the order of the calls; W&B commits it in the background.

        `settle` waits for everything that was started before, if the destination changes to another collection.

        Raises: as `log`.
        """
        publication = prepared.publication
        if prepared.collection != self.collection:
            prepared = self.prepare(run, publication)
        if reason := self._reason_to_leave(run, prepared):
            settle()
            self.take_own(str(run.id), reason)
            checked = CheckedArtifact.of(publication, self.collection, self._algorithm(run))
            prepared = Prepared(publication, checked, self.collection, None, None)
        self._log_left_behind(run)
        return self._log_artifact(run, prepared)

    def take_own(self, run_id: str, reason: str) -> None:
        """Change to a collection of the directory's own, and say why.

        Raises:
            CheckpointError: the directory has a collection of its own already.
        """
        if self._has_own:
            raise CheckpointError(
                f"{self._directory}: {reason}, and the directory has a collection of its own already; publish it to "
                "another project: emtoolkit sync DIR --project NAME"
            )
        own = own_collection_name(self.collection, run_id)
        add_collection(self._directory, own, self._tags, own=True)
        self.collection, self._has_own = own, True
        logger.warning("%s; all checkpoints in %s are published as %s", reason, self._directory, own)

    def _reason_to_leave(self, run: Any, prepared: Prepared) -> str | None:
        """Why the collection is another training's; None if it may be this one's."""
        step, held = prepared.publication.step, prepared.held
        if held is not None:
            if compare_with(held, prepared.checked) == "different":
                return difference_at(step, f"{self._name(run)}:{held.version}")
            self.may_add = self.may_add or step > 0
        elif prepared.newest_of_others is not None and not self.may_add:
            return (
                f"step {step}: another run began the collection ({prepared.newest_of_others}), and a GPU may give "
                "other bytes in a second training"
            )
        return None

    def _newest_of_others(self, run: Any) -> str | None:
        """The newest version, if a run of another directory made it."""
        newest = self._find(run, "latest")
        name = None if newest is None else f"{self._name(run)}:{newest.version}"
        if name is None or name in self._created:
            return None
        publications = Publications.read(self._directory)
        if any(published.artifact == name and published.created for published in publications.published.values()):
            return None
        creator = newest.logged_by()
        return None if creator is not None and creator.id in (run.id, *publications.runs) else name

    def _log_left_behind(self, run: Any) -> None:
        """Log the checkpoints again that were published before the directory had a collection of its own."""
        if not self._has_own or self._has_left_nothing:
            return
        publications = Publications.read(self._directory)
        here = f"{run.entity}/{run.project}/"
        left = {
            step
            for step, published in publications.published.items()
            if published.artifact.startswith(here) and published.collection != self.collection
        }
        for info in list_checkpoints(self._directory) if left else ():
            if info.step not in left or not info.complete:
                continue
            publication = Publication.of(info, publications)
            try:
                checked = CheckedArtifact.of(publication, self.collection, self._algorithm(run))
                self.finish(self._log_artifact(run, Prepared(publication, checked, self.collection, None, None)))
            except DamagedError as error:
                logger.warning("%s", error)
                continue
            if (before := publications.published[info.step]).created:
                self._release(before.artifact)
        self._has_left_nothing = True

    def _log_artifact(self, run: Any, prepared: Prepared) -> Started:
        publication = prepared.publication
        aliases = publication.aliases
        if publication.final and (final := self._find(run, "final")) is not None:
            # Another run with the same bytes went on for longer; its end is the end of the trajectory.
            is_later = (step_of_version(final) or 0) > publication.step
            aliases = aliases[:1] if is_later else aliases
        logged = run.log_artifact(prepared.checked.artifact, aliases=aliases, tags=self._tags_of(publication))
        return Started(publication, prepared.checked, logged, is_new=prepared.held is None)

    def finish(self, started: Started) -> Published:
        """Wait until W&B has committed the artifact, and record its version.

        Without waiting, the client would finish successfully even if the artifact were lost.

        Raises:
            DamagedError: a file was written meanwhile.
            Exception: whatever W&B's client raises.
        """
        publication, checked, logged = started.publication, started.checked, started.logged
        logged.wait()
        revive(logged)
        if (file := checked.changed_since()) is not None:
            self._release(logged.qualified_name)
            raise DamagedError(f"{file}: the file was written while it was published, so its version has no alias")
        if publication.metadata.get("saved_for") != "interruption":
            keep_as_step(logged)
        published = Published(logged.qualified_name, logged.digest, created=started.is_new)
        if started.is_new:
            self._created[logged.qualified_name] = publication.step
        try:
            add_published(self._directory, publication.step, published)
        except CheckpointError as error:
            logger.warning("step %d is published, but recording this failed: %s", publication.step, error)
        return published

    def remove_duplicates(self, run: Any) -> None:
        """Delete versions of this destination that another publisher made, too, at the same time; say if W&B refuses.

        W&B keeps two equal versions apart if neither was committed when the other began. The older one stays.
        """
        if not self._created:
            return
        name = self._name(run)
        try:
            same = defaultdict(list)
            for version in all_versions(self._client(run), name):
                same[version.digest].append(version)
            for versions in same.values():
                kept, *later = sorted(versions, key=lambda version: int(version.version.removeprefix("v")))
                for version in later:
                    if (step := self._created.get(version.qualified_name)) is not None:
                        self._replace(version, kept, step)
        except Exception as error:  # noqa: BLE001 - the client documents no set of exceptions
            logger.warning(
                "%s: two versions of one checkpoint could not be made one (%s); they are equal, and either may be "
                "deleted on W&B",
                name,
                first_line(error),
            )

    def _replace(self, version: Any, kept: Any, step: int) -> None:
        """Give the aliases of `version` to the equal version `kept`, and delete `version`."""
        kept.aliases = [*kept.aliases, *(alias for alias in version.aliases if alias not in ("latest", *kept.aliases))]
        kept.save()
        version.delete(delete_aliases=True)
        add_published(self._directory, step, Published(kept.qualified_name, kept.digest))

    def withdraw(self, run: Any, steps: AnyCollection[int]) -> None:
        """Take the aliases from the versions of `steps` that only an interruption asked for."""
        withdraw(self._client(run), self._name(run), steps)

    def _release(self, name: str) -> None:
        """Take the aliases that make a version a checkpoint from it."""
        version = find_version(self._api, name)
        if version is not None:
            version.aliases = [alias for alias in version.aliases if alias != "final" and not alias.startswith("step-")]
            version.metadata[PUBLISHED_AGAIN] = self.collection
            version.save()

    def _find(self, run: Any, alias: str) -> Any:
        return find_version(self._client(run), f"{self._name(run)}:{alias}")

    def _algorithm(self, run: Any) -> Algorithm:
        """The digests of new versions; W&B is asked once for each collection."""
        if self.collection not in self._algorithms:
            found = algorithm_for(self._client(run), run.entity, run.project, self.collection)
            self._algorithms[self.collection] = found
        return self._algorithms[self.collection]

    def _name(self, run: Any) -> str:
        return f"{run.entity}/{run.project}/{self.collection}"

    def _client(self, run: Any) -> Any:
        import wandb

        with self._lock:
            if self._api is None:
                self._api = wandb.Api(overrides={"entity": run.entity, "base_url": run.settings.base_url})
        return self._api

    def _tags_of(self, publication: Publication) -> list[str]:
        return [f"step-{publication.step}", *map(ARTIFACT_TAG.fit, self._tags)]
