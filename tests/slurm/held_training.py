"""`python -m tests.slurm.held_training HOLDS WORDS…`: an `emtoolkit WORDS…` that waits for a signal before some steps.

HOLDS are steps such as `3,6`. Each is held once, in the first process that comes to it; a file `held-N` in the working
directory says that the process waits there.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from emtoolkit.cli.app import main
from emtoolkit.saving import session
from emtoolkit.saving.signals import DeferredSignals
from emtoolkit.training import run as training_run
from emtoolkit.training.trainer import _RandomStateKeepingTrainer
from tests.processes import HANG_SECONDS

_received: list[int] = []


def hold(step: int) -> None:
    marker = Path(f"held-{step}")
    if marker.exists():
        return
    # The name appears with the number in it.
    (started := Path(f"{marker}.new")).write_text(str(os.getpid()))
    started.rename(marker)
    end = time.monotonic() + HANG_SECONDS
    while not _received and time.monotonic() < end:
        time.sleep(0.01)


def run(holds: set[int]) -> None:
    # On a busy machine W&B's client takes more than the two seconds that it gets after a signal.
    session.SECONDS_AFTER_SIGNAL = training_run.SECONDS_AFTER_SIGNAL = float(HANG_SECONDS)
    training_step, store = _RandomStateKeepingTrainer.training_step, DeferredSignals._store

    def held_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step in holds:
            hold(self.state.global_step)
        return training_step(self, *args, **kwargs)

    def noting(self: Any, number: int, frame: Any) -> None:
        _received.append(number)
        store(self, number, frame)

    _RandomStateKeepingTrainer.training_step = held_step  # type: ignore[method-assign]  # the waiting is in the test
    DeferredSignals._store = noting  # type: ignore[method-assign]  # see above
    main()


if __name__ == "__main__":
    chosen = {int(step) for step in sys.argv.pop(1).split(",") if step}
    run(chosen)
