"""`python -m tests.halted WORDS…`: an `emtoolkit WORDS…` that stops in the middle of step 6 and says its process id.

Every save that has begun is on disk then.
"""

import os
import signal
from typing import Any

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.cli.app import main
from emtoolkit.training.trainer import _RandomStateKeepingTrainer
from tests.saving.callbacks import wait_for_disk


def halt_in_step_6() -> None:
    training_step = _RandomStateKeepingTrainer.training_step

    def halted_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 5:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, ScheduledCheckpointCallback):
                    wait_for_disk(callback)
            os.write(1, b"%d\n" % os.getpid())
            signal.pause()
        return training_step(self, *args, **kwargs)

    _RandomStateKeepingTrainer.training_step = halted_step  # type: ignore[method-assign]  # the halt is in the test


if __name__ == "__main__":
    halt_in_step_6()
    main()
