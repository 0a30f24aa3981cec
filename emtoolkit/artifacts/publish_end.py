"""The end of a run's publication: a bounded wait for W&B, and a sentence about what W&B lacks then."""

import logging
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.publish import WandbPublisher
from emtoolkit.checkpoints.trajectory_file import WITHHELD
from emtoolkit.schedules.steps import elided
from emtoolkit.shell_command import quoted_command

logger = logging.getLogger(__name__)


def wait_for_publisher(
    publisher: WandbPublisher, run: Any, directory: Path, patience: float, *, interrupted: bool = False
) -> None:
    """Wait at most `patience` seconds for the publications of `run`, and warn about those that W&B lacks.

    Raises:
        KeyboardInterrupt: a signal ended the wait, unless an earlier one had `interrupted` the run.
    """
    try:
        publisher.drain(patience)
    except KeyboardInterrupt:
        publisher.drain(0.0, "a signal ended the wait for W&B")
        if not interrupted:
            raise
    finally:
        _warn_of_unpublished(publisher, run, directory)


def _warn_of_unpublished(publisher: WandbPublisher, run: Any, directory: Path) -> None:
    for _, problem in sorted(publisher.damaged.items()):
        logger.warning("%s; the checkpoint is not published", problem)
    if missing := sorted(publisher.failures.keys() - publisher.damaged):
        why = publisher.failures[missing[0]]
        command = quoted_command("emtoolkit", "sync", directory)
        logger.warning(
            "%d checkpoints are not on W&B (steps %s; %s); they are complete in %s%s%s",
            len(missing),
            elided(missing, 100),
            why,
            directory,
            "" if why == WITHHELD else f", and {command} publishes them",
            _hint_on_unbounded_end(run),
        )


def _hint_on_unbounded_end(run: Any) -> str:
    """A hint for programs that started the W&B run themselves: by default its end waits long for the server."""
    if run.offline or run.settings.finish_timeout > 0:
        return ""
    return "; the end of the W&B run may wait for the server, which WANDB_FINISH_TIMEOUT=60 bounds"
