"""One small training in two processes, run by a launcher. Arguments: directory, schedule, options as JSON."""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import distributed
from transformers import TrainerCallback

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.errors import UserError
from emtoolkit.saving.snapshot import SnapshotBuffers
from tests.processes import HANG_SECONDS
from tests.saving.callbacks import Die, FailAt
from tests.saving.trainings import lora_model, make_trainer


class AskAt(TrainerCallback):
    """In process 1: asks for the checkpoint of a step that no schedule names, at `step`."""

    def __init__(self, step: int, directory: Path) -> None:
        self.step, self.directory = step, directory

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and args.process_index == 1:
            (self.directory / "save-now").touch()


def no_memory(self: SnapshotBuffers) -> None:
    raise RuntimeError("no memory for the copy")


def main() -> None:
    directory, schedule, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    ours = ScheduledCheckpointCallback(
        schedule,
        resume_every=options.get("resume_every", "never"),
        # A training looks for requests once a second, which is too rarely for these few steps.
        clock=lambda: 1000 * time.monotonic(),
    )
    callbacks: list[TrainerCallback] = [] if options.get("stock") else [ours]
    if "die_at" in options:
        callbacks.append(Die(options["die_at"], ours))
    if "ask_at" in options:
        callbacks.append(AskAt(options["ask_at"], directory))
    if "fail_in_1_at" in options and os.environ["RANK"] == "1":
        callbacks.append(FailAt(options["fail_in_1_at"], "on_step_end"))
    if "no_memory" in options:
        SnapshotBuffers.prepare = no_memory  # type: ignore[method-assign]  # in process 0 only: no other one copies
    trainer = make_trainer(
        directory,
        callbacks,
        model=lora_model(dropout=0.1),
        num_train_epochs=2,
        **options.get("arguments", {}),
    )
    print(f"process {trainer.args.process_index} of {trainer.args.world_size}", flush=True)
    # An error in mid-training ends the process, which is how the other process learns of it.
    ends_here = (UserError, RuntimeError) if "no_memory" in options else UserError
    try:
        trainer.train(resume_from_checkpoint=options.get("resume_from"))
    except ends_here as error:
        kind = "refused" if isinstance(error, UserError) else "raised"
        os.write(1, f"{kind}: {error}\n".encode())  # in one write: the other process writes to the same pipe
        # The launcher kills a process when another ends, so both wait here until both have written. A process that
        # did not raise the error never comes here.
        distributed.monitored_barrier(timeout=timedelta(seconds=HANG_SECONDS))
        sys.exit(2)


if __name__ == "__main__":
    main()
