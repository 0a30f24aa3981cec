"""Checkpoints that an interrupted part of a W&B run has not published: the resumed part publishes them first.

After a signal W&B gets two seconds, and a killed process none, so the last checkpoints of a part may only be on disk.
"""

from pathlib import Path
from typing import Any

from emtoolkit.artifacts.joined_log import was_on_wandb
from emtoolkit.artifacts.publication import Publication
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.publications import Publications, WandbRun


def left_over(directory: Path, run: Any) -> list[Publication]:
    """The checkpoints that earlier parts of the online `run` saved in `directory`, and that W&B lacks, in step order.

    None where one of these parts was offline: its log holds its checkpoints, and `emtoolkit sync` sends them.
    """
    recorded = Publications.read(directory)
    present = WandbRun.of(run)
    earlier = [part for part in recorded.runs.get(present.id, ()) if part != present]
    if run.offline or not earlier or not all(map(was_on_wandb, earlier)):
        return []
    return [
        Publication.of(info, recorded)
        for info in list_checkpoints(directory)
        if info.complete
        and info.saved_for != "interruption"
        and info.step not in recorded.published
        and info.step not in recorded.only_here
        and recorded.run_of.get(info.step) == present.id
    ]
