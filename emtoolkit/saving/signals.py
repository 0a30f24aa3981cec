"""SIGINT and SIGTERM are deferred until the current training step has ended; a second signal acts at once."""

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from emtoolkit.launch import is_local_main_process

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterrupted(KeyboardInterrupt):
    """A signal stopped the training after its state at `step` had been saved."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signal_number).name} after step {step}")
        self.step = step
        self.signal_number = signal_number


class DeferredSignals:
    """Stores the first signal in `received` and restores the earlier handlers, so that a second one acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._earlier_handlers: dict[signal.Signals, Any] = {}

    def defer(self) -> None:
        """Install the handlers; does nothing outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is threading.main_thread() and not self._earlier_handlers:
            self.received = None
            self._earlier_handlers = {number: signal.signal(number, self._store) for number in _SIGNALS}

    def restore(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._earlier_handlers.items():
            signal.signal(number, handler)
        self._earlier_handlers = {}

    def _store(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.restore()
        if is_local_main_process():
            _tell("\nSaving the state after this training step; a second signal stops at once.\n")


def _tell(sentence: str) -> None:
    """Write to standard error from a handler of a signal, which may have come while the program was writing there."""
    stream = sys.stderr
    if stream is None:  # as for programs without a console
        return
    with suppress(OSError, ValueError, RuntimeError):  # then nobody can be told
        if stream is sys.__stderr__ and stream is not None:
            # Past the buffer of Python, whose writes refuse to be interrupted by another write.
            os.write(stream.fileno(), sentence.encode())
        else:
            stream.write(sentence)
