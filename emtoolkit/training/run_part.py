"""Which W&B run a training logs to: a training that is interrupted and resumed is one run.

The output directory records the id. A resumed training takes a new id if the run is not its own any more: the run is in
another project than the one asked for, it was deleted on W&B, or a copy of the directory has continued it.
"""

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.joined_log import was_on_wandb
from emtoolkit.artifacts.run_history import PART, find_run
from emtoolkit.artifacts.run_mode import Mode
from emtoolkit.checkpoints.publications import Publications, WandbRun

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunPart:
    """The id of the W&B run to log to; `entity` is that of an earlier part, None if there is none or it is unknown.

    `may_exist` is false for an id that no run has yet.
    """

    id: str
    may_exist: bool
    entity: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `wandb.init` that continue the run."""
        entity = {"entity": self.entity} if self.entity else {}
        return {"id": self.id} | ({"resume": "allow"} | entity if self.may_exist else {})


def next_part(directory: Path, place: Mapping[str, Any], mode: Mode) -> RunPart:
    """The run that a training in `directory` logs to; `place` holds the project and the entity that the user chose.

    `$WANDB_RUN_ID` comes first: a W&B agent reports the result of a combination under this id, and gives the id of an
    interrupted run again. Otherwise the newest run of the directory is continued.

    Raises:
        Exception: whatever W&B's client raises if the mode is online and the server does not answer.
    """
    publications = Publications.read(directory)
    newest = publications.newest_run
    if given := os.environ.get("WANDB_RUN_ID"):
        if newest is not None and newest.id != given:
            logger.warning(
                "WANDB_RUN_ID: W&B gives this training the run %s; the earlier part of the training is in the run %s",
                given,
                newest.id,
            )
        return RunPart(given, may_exist=True)
    if newest is None:
        return RunPart(_new_id(), may_exist=False)
    parts = publications.runs[newest.id]
    if reason := _why_another(parts, place, mode):
        own = RunPart(_new_id(), may_exist=False)
        logger.warning(
            "%s: %s, so the training continues as the new W&B run %s, whose history is complete",
            directory,
            reason,
            own.id,
        )
        return own
    return RunPart(newest.id, may_exist=True, entity=newest.entity or None)


def _why_another(parts: Sequence[WandbRun], place: Mapping[str, Any], mode: Mode) -> str | None:
    """Why the run of `parts` cannot be continued; None if it can."""
    newest = parts[-1]
    there = {"project": newest.project, "entity": newest.entity}
    for key, earlier in there.items():
        asked = place.get(key)
        if asked and earlier and asked != earlier:
            return f"its W&B run {newest.id} is in the {key} {earlier}, and wandb.{key} is {asked}"
    if mode != "online":
        return None
    run = find_run("/".join(filter(None, (newest.entity, newest.project, newest.id))))
    if run is None:
        was_there = any(map(was_on_wandb, parts))
        return f"W&B has no run {newest.id} any more" if was_there else None
    writer = run.config.get(PART)
    if writer is not None and writer not in {part.name for part in parts}:
        return f"another copy of this directory has continued the W&B run {newest.id}"
    return None


def _new_id() -> str:
    return secrets.token_hex(4)
