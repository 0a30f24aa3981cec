"""The identity of a bare Trainer's trajectory in one output directory, which may hold an earlier run of it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.saving.strategy import TrainerEvent
from emtoolkit.saving.trainer_identity import identity_of_training, initial_weights_digest
from emtoolkit.saving.trainer_identity_v1 import version_1_facts


def identity_for(
    directory: Path, event: TrainerEvent, trainer: Any, frozen: str, tensors: Mapping[str, Tensor]
) -> Identity:
    """The identity of the trajectory that `trainer` trains into `directory`, in the version of the record there.

    Args:
        frozen: the digest of the weights that are not trained.
        tensors: those that a checkpoint holds, by name.
    """
    recorded: Mapping[str, Any] = {}
    initial_weights = initial_weights_digest(tensors)
    record = TrajectoryRecord.read_if_any(directory)
    if record is not None:
        recorded = record.fingerprinted
        if event.step > 0:
            # A resumed model is not the initial model; the record has the digest of the initial weights.
            initial_weights = str(recorded.get("initial_weights"))
    identity = identity_of_training(event, trainer, frozen, initial_weights, recorded)
    if record is None or record.version > 1 or "initial_weights" not in recorded:
        return identity
    return replace(identity, fingerprinted=version_1_facts(event, recorded, initial_weights), version=1)
