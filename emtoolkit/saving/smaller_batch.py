"""The batch size that `auto_find_batch_size` leaves: a training with smaller batches is another trajectory."""

import logging
from pathlib import Path

from emtoolkit.saving.output_directory import set_aside

logger = logging.getLogger(__name__)


def set_attempt_aside(directory: Path, batch_size: int | None, *, updated: bool) -> None:
    """Move the checkpoints of the attempt with larger batches away, and say so; `updated` if it changed the weights."""
    aside = set_aside(directory)
    logger.warning("memory ran out: the batch size is now %d; %s holds the earlier attempt", batch_size, aside)
    if updated:
        logger.warning(
            "memory ran out after an update: training continues from the changed weights, so step 0 is not the "
            "initial model; for a trajectory from there, start again with per_device_train_batch_size=%d",
            batch_size,
        )
