"""The result of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emtoolkit.checkpoints.listing import CheckpointInfo

if TYPE_CHECKING:
    from emtoolkit.models.preflight import PersonaEffect


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run: its directory, its checkpoints, and what went wrong.

    `trained` is false where nothing was trained: the run was complete before, or all of its checkpoints are `reused`,
    the steps that an earlier training of the trajectory had saved. `trained_steps` counts the optimizer steps.
    `waited_seconds` is how long training waited for saves. `failures` are saves that failed, `unpublished` the steps
    that neither W&B nor the log of an offline run holds. `persona_effects` are measured before step 1 and at the end.
    """

    directory: Path
    checkpoints: tuple[CheckpointInfo, ...]
    wandb_directory: Path | None
    waited_seconds: float
    trained: bool
    failures: tuple[str, ...] = ()
    unpublished: tuple[int, ...] = ()
    persona_effects: "tuple[PersonaEffect, ...]" = ()
    reused: tuple[int, ...] = ()
    trained_steps: int = 0
