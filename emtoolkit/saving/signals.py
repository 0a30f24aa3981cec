"""SIGINT and SIGTERM, held back until the training step at hand has ended; a second one is not."""

import signal
import sys
import threading
from types import FrameType
from typing import Any

from emtoolkit.launch import is_local_main_process

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by a signal, after its state at `step` had been saved."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signal_number).name} after step {step}")
        self.step = step
        self.signal_number = signal_number


class Interrupts:
    """Remembers the first signal in `received`; the second one finds the handlers that were there before."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def catch(self) -> None:
        """Take over the handlers; does nothing outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self.received = None
            self._before = {number: signal.signal(number, self._remember) for number in _SIGNALS}

    def release(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.release()
        if is_local_main_process():
            sys.stderr.write("\nSaving the state after this training step; a second signal stops at once.\n")
