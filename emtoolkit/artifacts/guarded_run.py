"""A W&B run whose failures cost no training: W&B's process may be killed, its disk full, its client confused."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from emtoolkit.artifacts.client_process import ClientProcess, end_client
from emtoolkit.artifacts.run_end import finish_run
from emtoolkit.artifacts.run_history import RunHistory
from emtoolkit.errors import first_line

logger = logging.getLogger(__name__)

# The time limit of one call, in seconds.
_CALL_SECONDS = 20.0
# The time that the end of a run may take beyond W&B's own limit, in seconds.
_GRACE_SECONDS = 10.0


class GuardedRun:
    """Calls W&B's client for `run`; the first failure is kept as `problem` and none is raised.

    `history` is what W&B has of a run that is resumed, None for a new run.
    """

    def __init__(self, run: Any, history: RunHistory | None = None) -> None:
        self.run = run
        self.history = history
        self.problem: str | None = None
        self._process = ClientProcess.current()
        self._is_over = run is None

    def call(self, action: Callable[[], object]) -> None:
        """Call `action`, unless W&B's process has ended, and wait at most 20 s for it."""
        if self._is_over:
            return
        call = _Call(action)
        call.start()
        call.join(_CALL_SECONDS)
        if call.error is None and not call.is_alive():
            return
        why = self._process.why_ended()
        if why is None and call.is_alive():
            why = f"W&B's process wandb-core did not answer in {_CALL_SECONDS:g} s"
        if self.problem is None:
            self.problem = why or f"W&B's client failed ({call.why})"
            logger.info("%s; training goes on", self.problem)
        if why is not None or isinstance(call.error, ConnectionError):
            self.abandon()

    def attempt(self, action: Callable[[], object], seconds: float = _CALL_SECONDS) -> str | None:
        """Call `action`, wait at most `seconds` for it, and return why it failed: `problem` stays as it is."""
        if self._is_over:
            return None
        call = _Call(action)
        call.start()
        call.join(seconds)
        if call.is_alive():
            return f"W&B did not answer in {seconds:g} s"
        return None if call.error is None else call.why

    def finish(self, timeout: float, *, failed: bool) -> None:
        """End the run; `problem` says afterwards if W&B does not hold its log, which is asked for in `timeout` seconds.

        Raises:
            KeyboardInterrupt: a signal came, which ends the wait, and W&B's client with it.
        """
        if self._is_over:
            return
        self._is_over = True
        ending = _Ending(self.run, timeout, failed=failed)
        ending.start()
        try:
            ending.join(timeout + min(timeout, _GRACE_SECONDS))
        except KeyboardInterrupt:
            end_client()
            raise
        if ending.problem is not None:
            self.problem = self._process.why_ended() or self.problem or ending.problem
        if not ending.has_ended:
            end_client()

    def abandon(self) -> None:
        """End W&B's client at once; the log of the run stays on disk."""
        self._is_over = True
        end_client()


class _Call(threading.Thread):
    """A call of W&B's client, which waits without end for a process that hangs."""

    def __init__(self, action: Callable[[], object]) -> None:
        super().__init__(name="emtoolkit-wandb", daemon=True)
        self.error: Exception | None = None
        self._action = action

    @property
    def why(self) -> str:
        return "" if self.error is None else first_line(self.error)

    def run(self) -> None:
        try:
            self._action()
        except Exception as error:  # noqa: BLE001 - the client documents no set of exceptions
            self.error = error


class _Ending(threading.Thread):
    """The end of a run, for which a hanging client would let the main thread wait."""

    def __init__(self, run: Any, timeout: float, *, failed: bool) -> None:
        super().__init__(name="emtoolkit-finish", daemon=True)
        self.problem: str | None = "W&B's client did not end the run in time"
        self.has_ended = False
        self._run, self._timeout, self._failed = run, timeout, failed

    def run(self) -> None:
        try:
            self.problem = finish_run(self._run, self._timeout, failed=self._failed)
            self.has_ended = True
        except Exception as error:  # noqa: BLE001 - the client documents no set of exceptions
            self.problem = f"W&B's client could not end the run ({first_line(error)})"
