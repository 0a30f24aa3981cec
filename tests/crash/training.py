"""The training that the audit kills: eight steps, saved at 0, 3 and 8, with resume saves at 3 and 6."""

import argparse
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.saving.output_directory import OutputDirectory, clear_left_overs
from emtoolkit.training.resume_point import find_resume_point
from tests.saving.callbacks import wait_for_disk
from tests.saving.trainings import lora_model, make_trainer

STEPS = (0, 3, 8)
STOCK_STEPS = (3, 6, 8)


class Drain(TrainerCallback):
    """Lets no step begin before the saves of the previous step are on disk."""

    def __init__(self, ours: ScheduledCheckpointCallback) -> None:
        self._ours = ours

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wait_for_disk(self._ours)


def train(directory: Path, *, resume: bool = False, drained: bool = True, resume_from: Path | None = None) -> None:
    """Train into `directory`; with `resume` continue from where `emtoolkit train --resume` would."""
    start = None if resume_from is None else str(resume_from)
    if resume:
        point = find_resume_point(OutputDirectory.open(directory), STEPS, resume=True)
        if point.complete:
            clear_left_overs(directory)
            return
        start = None if point.checkpoint is None else str(point.checkpoint)
    ours = ScheduledCheckpointCallback("0,3", resume_every="3 steps")
    callbacks = [ours, Drain(ours)] if drained else [ours]
    make_trainer(directory, callbacks, model=lora_model(dropout=0.1)).train(resume_from_checkpoint=start)


def train_stock(directory: Path, *, resume: bool = False) -> None:
    """The same training with the Trainer's own saves; `resume` is `resume_from_checkpoint=True`."""
    trainer = make_trainer(directory, model=lora_model(dropout=0.1), save_strategy="steps", save_steps=3)
    # True raises if there is no checkpoint; a restarted job then starts from the beginning.
    trainer.train(resume_from_checkpoint=resume and get_last_checkpoint(str(directory)) is not None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--stock", action="store_true")
    arguments = parser.parse_args()
    (train_stock if arguments.stock else train)(arguments.directory.absolute(), resume=arguments.resume)
