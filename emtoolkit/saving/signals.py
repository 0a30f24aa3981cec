"""Signals that stop a training are deferred until the current step has ended; a second SIGINT or SIGTERM acts at once.

A notice of a scheduler (SIGUSR1 and others, see `stop_signals`) may come repeatedly, and SIGTERM may follow it while
the state is being saved: neither ends the process.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from emtoolkit.launch import is_local_main_process, terminate
from emtoolkit.stop_signals import ENDING, notices

logger = logging.getLogger(__name__)

_NOT_OF_A_PROGRAM = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, terminate)


class TrainingInterrupted(KeyboardInterrupt):
    """A signal stopped the training after its state at `step` had been saved, or `stop-now` (`asked`) as SIGTERM."""

    def __init__(self, step: int, signal_number: int, *, asked: bool = False) -> None:
        by = "stopped by stop-now" if asked else f"interrupted by {signal.Signals(signal_number).name}"
        super().__init__(f"{by} after step {step}")
        self.step = step
        self.signal_number = signal_number


class DeferredSignals:
    """Stores the first signal in `received`; restores the handlers of SIGINT and SIGTERM after one of them.

    `names` are the signals that stop the training, None those that `stop_signals.notices` gives.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self.received: int | None = None
        self._names = names
        self._process = 0
        self._earlier_handlers: dict[signal.Signals, Any] = {}
        # The handlers before the newest training, which stay known after it.
        self._before: Mapping[Any, Any] = {}
        self._training = False

    def defer(self) -> None:
        """Install the handlers; does nothing outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is threading.main_thread() and not self._earlier_handlers:
            self.received, self._process, self._training = None, os.getpid(), True
            caught = (*ENDING, *self._notices())
            for number in caught:
                if _is_of_a_program(signal.getsignal(number)) and is_local_main_process():
                    logger.warning(
                        "%s: during the training it saves the state and stops; the handler that this program "
                        "installed is restored afterwards",
                        number.name,
                    )
            self._earlier_handlers = {number: signal.signal(number, self._store) for number in caught}
            self._before = {**self._earlier_handlers}

    def restore(self) -> None:
        """Put the earlier handlers back, but for signals that got a handler since, which stays.

        After a signal, a program that ends now ignores the notices that are still to come.
        """
        earlier, self._earlier_handlers, self._training = self._earlier_handlers, {}, False
        for number, handler in earlier.items():
            if signal.getsignal(number) == self._store:
                ends = self.received is not None and number not in ENDING and handler is terminate
                signal.signal(number, signal.SIG_IGN if ends else _of_no_ended_training(handler, number))

    def _notices(self) -> Iterator[signal.Signals]:
        """The notices that this training may catch: those that the process neither ignores nor handles by itself."""
        for number in notices(self._names):
            match _disposition(number):
                case "default":
                    yield number
                case "handled" if self._names is not None:
                    yield number
                case kept if is_local_main_process():
                    level = logging.INFO if self._names is None else logging.WARNING
                    how = "keeps its handler" if kept in ("handled", "handled in C") else "is ignored"
                    logger.log(level, "%s %s in this process, and does not stop the training", number.name, how)

    def _store(self, number: int, frame: FrameType | None) -> None:
        if not self._training:
            # Who installed a handler over this one during the training has put this one back.
            signal.signal(number, _of_no_ended_training(self._store, number))
            signal.raise_signal(number)
            return
        is_first = self.received is None
        if is_first:
            self.received = number
        if number in ENDING:
            for each in ENDING:
                if (handler := self._earlier_handlers.pop(each, None)) is not None:
                    signal.signal(each, handler)
        # A process that the training has forked, as for loading data, has the handlers, too.
        is_told = is_local_main_process() and os.getpid() == self._process
        if is_told and (is_first or number in ENDING):
            second = "; a second signal stops at once" if number in ENDING else ""
            _tell(f"\nSaving the state after this training step{second}.\n")


def _is_of_a_program(handler: Any) -> bool:
    of_a_training = isinstance(getattr(handler, "__self__", None), DeferredSignals)
    return handler not in _NOT_OF_A_PROGRAM and not of_a_training


def _of_no_ended_training(handler: Any, number: int) -> Any:
    """`handler`, or the one before the training that installed `handler` if that training has ended."""
    while isinstance(owner := getattr(handler, "__self__", None), DeferredSignals) and not owner._training:
        handler = owner._before[number]
    return handler


def _disposition(number: signal.Signals) -> Literal["default", "ignored", "handled", "handled in C"]:
    """The process's disposition for the signal `number`, as far as Python can see it."""
    handler = signal.getsignal(number)
    if handler == signal.SIG_IGN:
        return "ignored"
    if handler is None or (handler == signal.SIG_DFL and _is_caught_in_c(number)):
        return "handled in C"
    return "default" if handler in (signal.SIG_DFL, terminate) else "handled"


def _is_caught_in_c(number: signal.Signals) -> bool:
    """Whether a library has a handler that Python does not know, such as `faulthandler.register`; on Linux only."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        mask = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
        return bool(int(mask, 16) >> (number - 1) & 1)
    return False


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
