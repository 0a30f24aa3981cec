"""Lower priorities for background threads, so that training keeps the processor."""

import os
import sys
import threading
from contextlib import suppress

# Nice values on Linux: a thread at 10 gets a tenth of the processor share of a thread at 0, at 19 a sixtieth.
DISK, NETWORK = 10, 19


def give_way(niceness: int) -> None:
    """Lower the priority of the calling thread to `niceness`; only Linux has a priority for each thread."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # Raising a priority is not allowed, and whoever started training at a low priority meant it.
        lower = max(niceness, os.getpriority(os.PRIO_PROCESS, thread))
        with suppress(PermissionError):  # some containers forbid the call
            os.setpriority(os.PRIO_PROCESS, thread, lower)
