"""The best checkpoint of a trajectory by a metric, and its alias on W&B."""

import logging
from dataclasses import dataclass
from pathlib import Path

from emtoolkit.artifacts.best_alias import Best, best_aliases, set_best
from emtoolkit.artifacts.collection import Collection, Reference
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.errors import CheckpointError, UserError
from emtoolkit.hub.names import is_hub
from emtoolkit.shell_command import quoted_command
from emtoolkit.trajectory import Trajectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BestCheckpoint:
    """The best checkpoint: its step and its value; `version` has the `alias`, both None if none was asked for."""

    step: int
    value: float
    alias: str | None = None
    version: str | None = None


def best_checkpoint(
    reference: str, metric: str, *, lowest: bool = False, skip_missing: bool = False, alias: bool = False
) -> BestCheckpoint:
    """The checkpoint with the best `metric`; with `alias` its version on W&B gets the alias `best-<metric>`.

    Raises:
        CheckpointError: see `Trajectory.best`; or W&B lacks the trajectory or the step, or failed.
    """
    trajectory = Trajectory.open(reference)
    found = trajectory.best(metric, lowest=lowest, missing="skip" if skip_missing else "refuse")
    value = trajectory.metrics().find(metric).values[found.step]
    if not alias:
        return BestCheckpoint(found.step, value)
    name = _collection_name(reference)
    if name is None:
        command = quoted_command("emtoolkit", "sync", Path(reference))
        raise CheckpointError(f"{reference}: no checkpoint is on W&B; run {command} first")
    best = Best(metric, lowest)
    version = set_best(Collection.read(Reference.parse(name)), best, found.step, value)
    return BestCheckpoint(found.step, value, best.alias, version)


def move_best_aliases(reference: str) -> list[str]:
    """Give each alias `best-<metric>` of the trajectory to the step that is the best now; a sentence for each move.

    An alias stays where it is, with a warning, if its metric does not decide or W&B fails.
    """
    name = _collection_name(reference)
    if name is None:
        return []
    moves = []
    try:
        collection = Collection.read(Reference.parse(name))
        for best in best_aliases(collection):
            found = best_checkpoint(reference, best.metric, lowest=best.lowest)
            if found.step != best.step:
                set_best(collection, best, found.step, found.value)
                moves.append(f"the alias {best.alias} moved from step {best.step} to step {found.step}")
    except UserError as error:
        logger.warning("an alias for the best checkpoint may be out of date: %s", error)
    return moves


def _collection_name(reference: str) -> str | None:
    """The collection of a trajectory; None for one whose checkpoints are not on W&B."""
    if is_hub(reference):
        return None
    if not Path(reference).is_dir():
        return reference
    published = list(Publications.read(Path(reference)).published.values())
    return published[-1].artifact.rpartition(":")[0] if published else None
