"""The output directory of a run that reuses: its checkpoints are those of the store, under its own schedule.

The directory is complete in itself. Its `publications.jsonl` names the store and the steps that were taken, so a
listing shows them, and everything that reads, publishes or resumes an output directory works as with a training.
"""

import logging
import shutil
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.publication import Publication, collection_name, collection_tags, fit_for_wandb
from emtoolkit.artifacts.publish import WandbPublisher
from emtoolkit.checkpoints.layout import TRAINER_STATE, checkpoint_name
from emtoolkit.checkpoints.manifest import MANIFEST, Manifest
from emtoolkit.checkpoints.publications import (
    PUBLICATIONS,
    Publications,
    add_collection,
    add_difference,
    add_metrics,
    add_reused,
    add_saved,
    add_store,
)
from emtoolkit.checkpoints.records import CheckpointMetadata
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError
from emtoolkit.paths import out_of_scratch
from emtoolkit.reuse.environment_file import ENVIRONMENT
from emtoolkit.storage.atomic import remove_temporaries, write_directory
from emtoolkit.storage.links import link_file

logger = logging.getLogger(__name__)

# Beside the checkpoints: the end of the Trainer's state, the environments of the training, and the tokenizer.
_BESIDE = (TRAINER_STATE, ENVIRONMENT, "tokenizer")


class OwnDirectory:
    """The locked output directory `directory` of a run that saves `schedule`, filled from `store`."""

    def __init__(self, directory: Path, store: Path, identity: Identity, total_steps: int, schedule: str) -> None:
        self.directory = directory
        self.store = store
        self.identity = identity
        self.total_steps = total_steps
        self._record = TrajectoryRecord.of(identity, total_steps, schedule)
        self._publisher: WandbPublisher | None = None
        self._run: str | None = None
        # Whether a step was taken of which the store has no record, which is said once.
        self._lacks_records = False

    @property
    def on_cpu(self) -> bool:
        """Whether the trajectory was trained on a CPU."""
        return "device" not in self.identity.fingerprinted

    def begin(self) -> None:
        """Write whose directory this is, unless an earlier call did."""
        directory = self.directory
        remove_temporaries([directory])
        publications = Publications.read(directory)
        # The record is last: without the store in it, the directory would be that of a run without reuse.
        if publications.store is None:
            add_store(directory, out_of_scratch(self.store))
        self._record.write(directory)
        if not publications.has_own_collection:
            add_collection(
                directory, collection_name(self.identity), collection_tags(self.identity), on_cpu=self.on_cpu
            )

    def publish_with(self, publisher: WandbPublisher | None, run: str | None) -> None:
        """Publish what is taken from now on; `run` is the id of the W&B run."""
        self._publisher, self._run = publisher, run

    def take(self, step: int, manifest: Manifest, *, reused: bool, publish: bool = True) -> None:
        """Make the checkpoint of `step` in the store this directory's own; `reused` unless this run trained it.

        Without `publish` a call of `settle` publishes it.

        Raises:
            CheckpointError: the files cannot be linked or copied.
        """
        source, target = self.store / checkpoint_name(step), self.directory / checkpoint_name(step)
        stored = Publications.read(self.store)
        if step not in stored.metadata and not self._lacks_records:
            self._lacks_records = True
            logger.warning(
                "%s: has no record of step %d, so the metadata of such steps lack their losses and their environment; "
                "the checkpoints themselves are intact",
                self.store / PUBLICATIONS,
                step,
            )
        metadata = self._metadata(step, stored)
        add_saved(self.directory, step, metadata, self._run)
        if reused:
            add_reused(self.directory, step)
        size = sum(digest.bytes for digest in manifest.files.values())
        write_directory(target, lambda scratch: _link(source, scratch, manifest), size)
        if (difference := stored.differences.get(step)) is not None:
            add_difference(self.directory, step, difference)
        if publish:
            self._publish(step, metadata)

    def settle(self, step: int) -> None:
        """Record the metrics of `step`, which this run trained and took, and publish it."""
        before = Publications.read(self.directory).metadata.get(step, {})
        now = self._metadata(step, Publications.read(self.store))
        if metrics := {name: value for name, value in now.items() if name not in before}:
            add_metrics(self.directory, step, metrics)
        self._publish(step, now)

    def _publish(self, step: int, metadata: Mapping[str, Any]) -> None:
        if self._publisher is not None:
            path = self.directory / checkpoint_name(step)
            self._publisher.publish(Publication(step, path, step == self.total_steps, metadata))

    def end(self) -> None:
        """The store holds the last step: copy what lies beside the checkpoints, and record that training has ended."""
        for name in _BESIDE:
            source, target = self.store / name, self.directory / name
            if source.is_dir() and not target.exists():
                write_directory(target, partial(shutil.copytree, source, dirs_exist_ok=True), 0)
            elif source.is_file():
                shutil.copyfile(source, target)
        self._record.ended(self.total_steps).write(self.directory)

    def _metadata(self, step: int, stored: Publications) -> Mapping[str, Any]:
        """The training's record of the step, with the schedule and the places of this run."""
        identity = self.identity
        found = (
            dict(stored.metadata.get(step, {}))
            or CheckpointMetadata(step=step, total_steps=self.total_steps, fingerprint=identity.fingerprint).to_json()
        )
        if found.get("saved_for") == "interruption":
            # In this run's schedule the step is one like the others.
            del found["saved_for"]
        places = {"base_place": identity.base_place, "persona_place": identity.persona_place}
        own = {"schedule": self._record.schedule} | {name: place for name, place in places.items() if place is not None}
        return fit_for_wandb(found | own)


def intact(store: Path, steps: Collection[int], fingerprint: str) -> tuple[dict[int, Manifest], list[str]]:
    """The manifests of the checkpoints of `steps` in `store` whose every byte is as listed, and the others' problems.

    A step without a directory is in neither.
    """
    found: dict[int, Manifest] = {}
    problems = []
    for step in steps:
        path = store / checkpoint_name(step)
        if not path.is_dir():
            continue
        try:
            manifest = Manifest.read(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        wrong = manifest.problems(path, rehash=True)
        if manifest.step != step or manifest.fingerprint != fingerprint:
            wrong.append(f"{path / MANIFEST}: is of step {manifest.step} of trajectory {manifest.fingerprint[:8]}")
        if wrong:
            problems.append(wrong[0])
        else:
            found[step] = manifest
    return found, problems


def _link(source: Path, target: Path, manifest: Manifest) -> None:
    for name in (*manifest.files, MANIFEST):
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        link_file(source / name, file)
