"""W&B's own process, wandb-core, which holds the runs of this process: whether it lives, and how it ends at once."""

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

# The time for W&B's client to notice that its process is gone, in seconds.
_SECONDS_TO_NOTICE = 2.0


@dataclass(frozen=True, slots=True)
class ClientProcess:
    """The process that W&B's client in this process uses; None if another program started it, as a W&B agent does."""

    _process: "subprocess.Popen[bytes] | None"

    @classmethod
    def current(cls) -> "ClientProcess":
        return cls(_process_of(_connection()))

    def why_ended(self, *, within: float = 0.0) -> str | None:
        """Why the process is gone, now or `within` that many seconds; None while it lives."""
        code = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(within)
        if code is None:
            return None
        how = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        return f"W&B's process wandb-core ended ({how})"


def end_client() -> None:
    """End W&B's client in this process at once, with everything that it has not sent.

    The logs of its runs stay on disk. Without this call the interpreter's exit waits until W&B has sent everything.
    """
    if "wandb" not in sys.modules:
        return
    import wandb
    from wandb.sdk.lib.module import unset_globals

    _silence_threads()
    process = _process_of(_connection())
    run = wandb.run
    if process is not None:
        process.kill()
    if run is not None:
        # The run would otherwise pass each line of output on to the process.
        _quietly(run._console_stop)
    # The client cannot send its process the end, which is what it waits for.
    ending = threading.Thread(target=_quietly, args=(wandb.teardown,), name="emtoolkit-end-wandb", daemon=True)
    ending.start()
    ending.join(_SECONDS_TO_NOTICE)
    unset_globals()  # type: ignore[no-untyped-call]


def _silence_threads() -> None:
    """Show no traceback of the client's threads, each of which fails if the process is gone."""
    for name in ("asyncio", "wandb.sdk"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not isinstance(threading.excepthook, _OfOtherThreads):
        threading.excepthook = _OfOtherThreads(threading.excepthook)


@dataclass(frozen=True, slots=True)
class _OfOtherThreads:
    """Shows the failure of a thread, unless the thread is one of W&B's client."""

    show: Callable[[threading.ExceptHookArgs], object]

    def __call__(self, failure: threading.ExceptHookArgs) -> None:
        if failure.thread is None or not failure.thread.name.startswith("wandb-"):
            self.show(failure)


def _quietly(action: Callable[[], object]) -> None:
    # `wandb.teardown` calls `sys.exit` if its process has not ended well.
    with suppress(Exception, SystemExit):
        action()


def _connection() -> Any:
    """The connection of W&B's client to its process; None without one."""
    from wandb.sdk import wandb_setup

    return getattr(wandb_setup.singleton(), "_connection", None)


def _process_of(connection: Any) -> "subprocess.Popen[bytes] | None":
    process = getattr(getattr(connection, "_proc", None), "_process", None)
    return process if isinstance(process, subprocess.Popen) else None
