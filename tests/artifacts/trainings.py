"""Run directories whose checkpoints are published in this process, without a training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import wandb

from emtoolkit import Trajectory
from emtoolkit.artifacts.destination import Destination
from emtoolkit.artifacts.publication import Publication, collection_name
from emtoolkit.artifacts.publish import WandbPublisher
from emtoolkit.checkpoints.publications import Publications, WandbRun, add_collection, add_run, add_saved
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from tests.artifacts.stored import IDENTITY, TOTAL_STEPS, checkpoint_files
from tests.processes import HANG_SECONDS
from tests.wandb_server import WandbServer

SHARED = collection_name(IDENTITY)


def saved(directory: Path, steps: Mapping[int, str], ended_at: int | None = None, *, on_cpu: bool = True) -> Path:
    """A run's directory with checkpoints at `steps`, each with the weights of the training that it is mapped to."""
    for step, training in steps.items():
        checkpoint_files(directory / f"checkpoint-{step}", step, training=training)
        add_saved(directory, step, {"step": step, "fingerprint": IDENTITY.fingerprint}, run=None)
    TrajectoryRecord(IDENTITY.fingerprint, TOTAL_STEPS, "0", ended_at=ended_at).write(directory)
    add_collection(directory, SHARED, [], on_cpu=on_cpu)
    return directory


def publish(directory: Path, run_id: str, *, only: Sequence[int] = ()) -> Mapping[int, str]:
    """Publish as a training does, in a W&B run; return the failures."""
    run = wandb.init(project="proj", id=run_id, dir=directory, settings=wandb.Settings(silent=True))
    add_run(directory, WandbRun.of(run))
    publisher = WandbPublisher(run, Destination.of(directory, IDENTITY, on_cpu=Publications.read(directory).on_cpu))
    trajectory = Trajectory.open(directory)
    for checkpoint in trajectory:
        if not only or checkpoint.step in only:
            publisher.publish(Publication(checkpoint.step, checkpoint.path, checkpoint.final, checkpoint.metadata))
    publisher.drain(HANG_SECONDS)
    run.finish()
    return publisher.failures


def on_wandb(server: WandbServer) -> dict[str, list[int]]:
    """The steps that are checkpoints of each collection."""
    return {
        name: sorted(
            int(alias.removeprefix("step-"))
            for version in collection.versions
            for alias in version.aliases
            if alias.startswith("step-")
        )
        for name, collection in server.store.project("tester", "proj").collections.items()
    }
