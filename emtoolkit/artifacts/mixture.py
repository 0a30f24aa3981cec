"""The check that a collection on W&B is one training: nobody moved an alias to another step, trajectory or run.

Publishing keeps trainings apart (see `destination`). Older versions of emtoolkit, a plain `wandb sync` and W&B's own
pages may move the alias `step-N` to other bytes; the version that lost its alias stays in the collection and shows it.
"""

import copy
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from emtoolkit.artifacts.collection import Collection, RemoteCheckpoint, file_digests
from emtoolkit.artifacts.digest_algorithm import algorithm_of
from emtoolkit.artifacts.file_transfer import RetryPolicy, Transfer
from emtoolkit.checkpoints.listing import check_one_fingerprint
from emtoolkit.checkpoints.manifest import MANIFEST
from emtoolkit.errors import CheckpointError
from emtoolkit.schedules.steps import elided

_ADVICE = "'emtoolkit sync DIR --project NAME' publishes each run's directory to a clean project"
_MOST_CHARACTERS = 60


def check_is_one_training(collection: Collection) -> None:
    """Check `collection` without downloading a checkpoint.

    Raises:
        CheckpointError: the collection mixes steps, trajectories or runs; the message says which.
    """
    for checkpoint in collection.checkpoints:
        saved_as = checkpoint.record.step
        if saved_as not in (None, checkpoint.step):
            raise CheckpointError(
                f"{checkpoint.artifact}: the version has the alias step-{checkpoint.step} and was saved as step "
                f"{saved_as}; move the alias back on W&B"
            )
    fingerprints = {checkpoint.step: checkpoint.record.fingerprint for checkpoint in collection.checkpoints}
    check_one_fingerprint(collection.name, fingerprints, _ADVICE)
    _check_one_run(collection)


def without_interruptions(collection: Collection) -> Collection:
    """`collection` without the checkpoints that only an interruption asked for.

    Raises:
        CheckpointError: nothing else is left.
    """
    kept = copy.copy(collection)
    kept.checkpoints = tuple(c for c in collection.checkpoints if c.metadata.get("saved_for") != "interruption")
    if collection.checkpoints and not kept.checkpoints:
        raise CheckpointError(
            f"{collection.checkpoints[-1].artifact}: was saved at an interruption; "
            "Trajectory.open(..., interrupted=True) includes the step"
        )
    return kept


def _check_one_run(collection: Collection) -> None:
    """Check that no step was published with other bytes by a run whose other steps are in the trajectory."""
    at = {checkpoint.step: checkpoint for checkpoint in collection.checkpoints}
    doubtful = [old for old in collection.replaced if old.step in at and old.digest != at[old.step].digest]
    if not doubtful:
        return
    run_of = {checkpoint.step: _creator(checkpoint) for checkpoint in collection.checkpoints}
    for old in doubtful:
        now, creator = at[old.step], _creator(old)
        replaced_itself = creator is not None and creator == run_of[old.step]
        if replaced_itself or creator not in run_of.values() or not _differ(collection, old, now):
            continue
        steps = defaultdict(list)
        for step, run in run_of.items():
            steps[run or "an unknown run"].append(step)
        published = "; ".join(f"{run} published steps {elided(of, _MOST_CHARACTERS)}" for run, of in steps.items())
        versions = " and ".join(checkpoint.artifact.rpartition(":")[2] for checkpoint in (old, now))
        raise CheckpointError(
            f"{collection.name}: mixes several trainings: {published}; step {old.step} exists with different bytes "
            f"({versions}). {_ADVICE}"
        )


def _differ(collection: Collection, replaced: RemoteCheckpoint, current: RemoteCheckpoint) -> bool:
    """Whether two versions are different checkpoints; two with the same manifest may differ in other files."""
    manifests = [file_digests(version.handle).get(MANIFEST) for version in (replaced, current)]
    if None not in manifests and algorithm_of(replaced.handle) != algorithm_of(current.handle):
        # Another client of W&B added one of the versions, with digests that cannot be compared.
        return _manifest_of(collection, replaced) != _manifest_of(collection, current)
    return None in manifests or manifests[0] != manifests[1]


def _manifest_of(collection: Collection, version: RemoteCheckpoint) -> bytes:
    """The bytes of the manifest, downloaded."""
    (file,) = [file for file in collection.files(version) if file.name == MANIFEST]
    with TemporaryDirectory() as place:
        path = Path(place) / MANIFEST
        Transfer(collection.api_key, RetryPolicy()).fetch(file, path)
        return path.read_bytes()


def _creator(checkpoint: RemoteCheckpoint) -> str | None:
    """The run that logged a version first, such as `run 1a2b3c4d`; None if W&B does not know the run any more."""
    import wandb

    try:
        run: Any = checkpoint.handle.logged_by()
    except (wandb.errors.Error, ValueError):
        return None
    return None if run is None else f"run {run.id}"
