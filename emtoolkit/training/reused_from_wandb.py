"""Checkpoints that a run with reuse takes from its own W&B project, and their record in its W&B run."""

import logging
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.collection import Reference
from emtoolkit.artifacts.guarded_run import GuardedRun
from emtoolkit.artifacts.publication import collection_name
from emtoolkit.artifacts.run_mode import intended_mode
from emtoolkit.artifacts.server import why_not_logged_in, why_unreachable
from emtoolkit.artifacts.versions import find_versions
from emtoolkit.checkpoints.pruned import pruned_steps
from emtoolkit.checkpoints.publications import Publications, Published
from emtoolkit.checkpoints.trajectory_file import DamagedRecordError, TrajectoryRecord
from emtoolkit.config.scheduling import CheckpointingConfig
from emtoolkit.config.sections import RunConfig, TrajectoryConfig
from emtoolkit.paths import out_of_scratch
from emtoolkit.progress import Progress
from emtoolkit.reuse.from_wandb import fetch
from emtoolkit.reuse.own_directory import OwnDirectory, intact
from emtoolkit.reuse.store import TrajectoryStore, training_of
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.training.wandb_run import chosen_place

logger = logging.getLogger(__name__)

_SECONDS_FOR_LINEAGE = 20.0
_SECONDS_FOR_EACH_INPUT = 0.5


def schedule_to_save(checkpointing: CheckpointingConfig, trajectory: TrajectoryConfig) -> Schedule:
    """The steps of the run, and those that other runs of its sweep want."""
    schedule = checkpointing.to_schedule()
    also = trajectory.also_save
    return schedule if also is None else schedule | Schedule.parse(also)


def fill_from_wandb(
    config: RunConfig,
    store: TrajectoryStore,
    own: OwnDirectory,
    lacking: Collection[int],
    record: TrajectoryRecord,
    progress: Progress,
) -> None:
    """Download what the store lacks of the steps to save, if the run is online; the caller holds the store's lock.

    A run with held-out losses takes nothing: W&B's versions do not hold the losses at all steps.
    """
    if intended_mode(config.wandb) != "online" or config.evaluation.to_schedule() is not None:
        return
    pruned = frozenset(pruned_steps(own.store)) - frozenset(lacking)
    wanted = frozenset(schedule_to_save(config.checkpointing, config.trajectory).steps(record.total_steps)) - pruned
    there, _ = intact(own.store, wanted, record.fingerprint)
    # The start of the W&B run says why W&B cannot be used.
    if wanted == there.keys() or why_not_logged_in() or why_unreachable():
        return
    place = chosen_place(config.wandb)
    reference = Reference(place["entity"], place["project"], collection_name(own.identity))
    fetch(
        reference,
        own.store,
        store.environment,
        record,
        wanted - there.keys(),
        patience=config.wandb.publish_timeout,
        progress=progress,
    )


def versions_of(own: OwnDirectory) -> Mapping[int, Published]:
    """The versions on W&B of the steps in the store: those that were downloaded, or the latest training published.

    A training publishes from its output directory, which may be gone or hold something else by now.
    """
    downloaded = Publications.read(own.store).published
    training = training_of(own.store)
    if training is None or (directory := Path(training.directory)) == out_of_scratch(own.directory):
        return downloaded
    try:
        record = TrajectoryRecord.read_if_any(directory)
    except DamagedRecordError:
        return downloaded
    if record is None or record.fingerprint != own.identity.fingerprint:
        return downloaded
    return {**Publications.read(directory).published, **downloaded}


def use_versions(run: GuardedRun, versions: Mapping[int, Published], steps: Collection[int]) -> None:
    """Make those of `versions` that have `steps` inputs of the online `run`, for the lineage on W&B.

    A version that W&B no longer has is none. The first failure ends the attempt, with a warning.
    """
    if run.run is None or run.run.disabled or run.run.offline:
        return
    names = [versions[step].artifact for step in sorted(steps) if step in versions]
    seconds = _SECONDS_FOR_LINEAGE + _SECONDS_FOR_EACH_INPUT * len(names)
    problem = run.attempt(partial(_use, run.run, names), seconds) if names else None
    if problem is not None:
        logger.warning("W&B did not take the inputs of the run, so its lineage lacks checkpoints (%s)", problem)


def _use(run: Any, names: Collection[str]) -> None:
    import wandb

    found = find_versions(wandb.Api(), names)
    for name in names:
        if name in found:
            run.use_artifact(found[name])
