"""`resume_from_checkpoint` of `Trainer.train`, where a schedule owns the saves.

A scheduled checkpoint holds the weights of a step and neither the optimizer nor the random states, so no training can
continue from one. The resume state is elsewhere: `<output directory>/resume/checkpoint-N`.
"""

import logging
from pathlib import Path

from emtoolkit.checkpoints.layout import TRAINER_STATE, step_of
from emtoolkit.checkpoints.manifest import MANIFEST
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.output_directory import OutputDirectory
from emtoolkit.saving.resume_state import RESUME_DIRECTORY, resume_states

logger = logging.getLogger(__name__)


def resume_checkpoint(directory: Path, asked: str | Path | bool | None) -> str | bool | None:
    """The directory from which the Trainer continues, if it was `asked` to continue; `asked` if it was not.

    Args:
        directory: the output directory, whose newest resume state is meant by True and by the directory itself.

    Raises:
        CheckpointError: no resume state is there; the text says which there is.
    """
    if asked is None or asked is False:
        return asked
    if asked is True:
        return _newest(directory)
    path = Path(asked).expanduser().absolute()
    if path in (directory, directory / RESUME_DIRECTORY):
        return _newest(directory)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory; {_where(directory)}")
    if (path / TRAINER_STATE).is_file() or not (path / MANIFEST).is_file():
        return str(path)
    same_step = path.parent / RESUME_DIRECTORY / path.name
    if (same_step / TRAINER_STATE).is_file():
        logger.info("%s holds weights only; training continues from %s", path, same_step)
        return str(same_step)
    raise CheckpointError(
        f"{path}: holds the weights of step {step_of(path.name)} and no optimizer, so training cannot continue from "
        f"there; {_where(path.parent)}"
    )


def _newest(directory: Path) -> str:
    if found := resume_states(directory):
        return str(found[-1])
    raise CheckpointError(f"{directory}: holds no resume state; {_where(directory)}")


def _where(directory: Path) -> str:
    """Which resume states are under `directory`, or what to do without any."""
    if found := resume_states(directory):
        return f"the resume state is {found[-1]}, which resume_from_checkpoint=True finds"
    ended = OutputDirectory.open(directory).ended_at
    if ended is not None:
        return f"training ended at step {ended}, and only resume_at_end=True keeps its resume state"
    return "without resume_from_checkpoint training starts at step 0, and intact checkpoints stay"
