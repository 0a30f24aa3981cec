"""Versions on W&B of checkpoints that only an interruption asked for: no step of the trajectory after it was passed.

The version stays, with its bytes and its lineage, and loses the alias and the tag of the step.
"""

import logging
from collections.abc import Collection as AnyCollection
from collections.abc import Sequence
from typing import Any

from emtoolkit.artifacts.collection import Collection
from emtoolkit.artifacts.versions import find_version
from emtoolkit.checkpoints.listing import CheckpointInfo
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.checkpoints.saved_for import with_reason
from emtoolkit.errors import first_line

logger = logging.getLogger(__name__)


def is_of_interruption(version: Any) -> bool:
    """Whether nothing but an interruption asked for the checkpoint of `version`, as far as its metadata say."""
    return bool(version.metadata.get("saved_for") == "interruption")


def withdraw(api: Any, collection: str, steps: AnyCollection[int]) -> None:
    """Take the alias and the tag of each of `steps` from the versions in `entity/project/collection`.

    A version that another run has saved for its schedule keeps both. A failure is logged; `emtoolkit sync` tries again.
    """
    for step in sorted(steps):
        mark = f"step-{step}"
        try:
            version = find_version(api, f"{collection}:{mark}")
            if version is None or not is_of_interruption(version):
                continue
            version.aliases = [alias for alias in version.aliases if alias != mark]
            version.tags = [tag for tag in version.tags if tag != mark]
            version.save()
        except Exception as error:  # noqa: BLE001 - the client documents no set of exceptions
            logger.info("%s: the alias %s could not be removed (%s)", collection, mark, first_line(error))


def withdraw_passed(collection: Collection | None, publications: Publications, here: Sequence[CheckpointInfo]) -> None:
    """Withdraw the steps of `collection` that the directory of `publications` saved at an interruption and has passed.

    `here` are the checkpoints that the directory holds.
    """
    import wandb

    steps = {info.step for info in here}
    last = max((info.step for info in here if info.is_of_trajectory), default=0)
    passed = [
        each.step
        for each in (collection.checkpoints if collection is not None else ())
        if each.step < last and each.step not in steps and publications.saved_for.get(each.step) == "interruption"
    ]
    if collection is not None and passed:
        withdraw(wandb.Api(), collection.name, passed)


def keep_as_step(version: Any) -> None:
    """Remove the mark of an interruption from the metadata of `version`, which a schedule contains now."""
    if is_of_interruption(version):
        version.metadata = with_reason(version.metadata, "schedule")
        version.save()
