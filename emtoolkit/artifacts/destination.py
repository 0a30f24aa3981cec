"""The collection on W&B that a directory publishes to: that of its trajectory, or one of its own.

Runs share the collection of their trajectory while every step that both hold has the same bytes. A run whose step
differs is another training: the alias `step-N` stays where it is, and all checkpoints of the run's directory go to a
collection of their own, whose name ends in the run's id. `publications.jsonl` records the change, so later runs in the
same directory and `emtoolkit sync` keep to it.

A training on a GPU may give other bytes although everything that decides it is equal. It adds a step to a collection
that another run began only after both had the same bytes at a trained step.
"""

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

from emtoolkit.artifacts.collection import PUBLISHED_AGAIN, all_versions, file_digests, find_version, step_of_version
from emtoolkit.artifacts.names import ARTIFACT_TAG
from emtoolkit.artifacts.publication import (
    CheckedArtifact,
    DamagedError,
    Publication,
    collection_name,
    collection_tags,
    own_collection_name,
)
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
    theirs, ours = file_digests(version), checked.md5
    if all(theirs.get(name) == digest for name, digest in ours.items()):
        return "same"
    return "damaged" if theirs.get(MANIFEST) == ours[MANIFEST] else "different"


def difference_at(step: int, held: str) -> str:
    """The reason for a collection of one's own: W&B holds other bytes, the version `held`, as `step`."""
    return f"step {step} differs from the checkpoint that another run published ({held}), so this is another training"


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
        # The versions that this destination made.
        self._created: dict[str, int] = {}
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
        checked = CheckedArtifact.of(publication, self.collection)
        if run.offline:
            run.log_artifact(checked.artifact, aliases=publication.aliases, tags=self._tags_of(publication))
            return None
        held = self._find(run, f"step-{publication.step}")
        if reason := self._reason_to_leave(run, publication.step, held, checked):
            self.take_own(str(run.id), reason)
            checked, held = CheckedArtifact.of(publication, self.collection), None
        self._log_left_behind(run)
        return self._commit(run, publication, checked, is_new=held is None)

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

    def _reason_to_leave(self, run: Any, step: int, held: Any, checked: CheckedArtifact) -> str | None:
        """Why the collection is another training's; None if it may be this one's."""
        name = f"{run.entity}/{run.project}/{self.collection}"
        if held is not None:
            if compare_with(held, checked) == "different":
                return difference_at(step, f"{name}:{held.version}")
            self.may_add = self.may_add or step > 0
        elif not self.may_add and not self._has_own:
            newest = self._find(run, "latest")
            if newest is not None and not self._is_ours(newest, f"{name}:{newest.version}"):
                return (
                    f"step {step}: another run began the collection ({name}:{newest.version}), and a GPU may give "
                    "other bytes in a second training"
                )
        return None

    def _is_ours(self, version: Any, name: str) -> bool:
        """Whether a run of this directory made a version."""
        publications = Publications.read(self._directory)
        if any(published.artifact == name and published.created for published in publications.published.values()):
            return True
        creator = version.logged_by()
        return creator is not None and creator.id in publications.runs

    def _log_left_behind(self, run: Any) -> None:
        """Log the checkpoints again that were published before the directory had a collection of its own."""
        if not self._has_own:
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
                self._commit(run, publication, CheckedArtifact.of(publication, self.collection), is_new=True)
            except DamagedError as error:
                logger.warning("%s", error)
                continue
            if (before := publications.published[info.step]).created:
                self._release(before.artifact)

    def _commit(self, run: Any, publication: Publication, checked: CheckedArtifact, *, is_new: bool) -> Published:
        """Log the artifact and wait until W&B has committed it.

        Without waiting, the client would finish successfully even if the artifact were lost.
        """
        aliases = publication.aliases
        if publication.final and (final := self._find(run, "final")) is not None:
            # Another run with the same bytes went on for longer; its end is the end of the trajectory.
            is_later = (step_of_version(final) or 0) > publication.step
            aliases = aliases[:1] if is_later else aliases
        logged = run.log_artifact(checked.artifact, aliases=aliases, tags=self._tags_of(publication))
        logged.wait()
        if (file := checked.changed_since()) is not None:
            self._release(logged.qualified_name)
            raise DamagedError(f"{file}: the file was written while it was published, so its version has no alias")
        published = Published(logged.qualified_name, logged.digest, created=is_new)
        if is_new:
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
        name = f"{run.entity}/{run.project}/{self.collection}"
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

    def _release(self, name: str) -> None:
        """Take the aliases that make a version a checkpoint from it."""
        version = find_version(self._api, name)
        if version is not None:
            version.aliases = [alias for alias in version.aliases if alias != "final" and not alias.startswith("step-")]
            version.metadata[PUBLISHED_AGAIN] = self.collection
            version.save()

    def _find(self, run: Any, alias: str) -> Any:
        return find_version(self._client(run), f"{run.entity}/{run.project}/{self.collection}:{alias}")

    def _client(self, run: Any) -> Any:
        if self._api is None:
            import wandb

            self._api = wandb.Api(overrides={"entity": run.entity, "base_url": run.settings.base_url})
        return self._api

    def _tags_of(self, publication: Publication) -> list[str]:
        return [f"step-{publication.step}", *map(ARTIFACT_TAG.fit, self._tags)]
