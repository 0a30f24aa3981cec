"""Checkpoints that a run with reuse takes from its own W&B project, and their record in its W&B run."""

from collections.abc import Collection
from functools import partial

from emtoolkit.artifacts.collection import Reference
from emtoolkit.artifacts.guarded_run import GuardedRun
from emtoolkit.artifacts.publication import collection_name
from emtoolkit.artifacts.run_mode import intended_mode
from emtoolkit.artifacts.server import why_not_logged_in, why_unreachable
from emtoolkit.checkpoints.pruned import pruned_steps
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.config.scheduling import CheckpointingConfig
from emtoolkit.config.sections import RunConfig, TrajectoryConfig
from emtoolkit.progress import Progress
from emtoolkit.reuse.from_wandb import fetch
from emtoolkit.reuse.own_directory import OwnDirectory, intact
from emtoolkit.reuse.store import TrajectoryStore
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.training.wandb_run import chosen_place


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


def use_versions(run: GuardedRun, own: OwnDirectory, steps: Collection[int]) -> None:
    """Make the versions from which `steps` were downloaded inputs of the online `run`, for the lineage on W&B."""
    if run.run is None or run.run.disabled or run.run.offline:
        return
    published = Publications.read(own.store).published
    for step in sorted(steps):
        if step in published:
            run.call(partial(run.run.use_artifact, published[step].artifact))
