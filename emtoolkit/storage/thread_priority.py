"""Threads that give way to training where there are fewer cores than work."""

import os
import sys
import threading
from contextlib import suppress

# In Linux's units: a thread at 10 has a tenth of the share of one at 0, at 19 a sixtieth.
DISK, NETWORK = 10, 19


def give_way(niceness: int) -> None:
    """Lower the priority of the calling thread; only Linux has one for each thread."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # Never up: that is not allowed, and whoever started training at a low priority meant it.
        lower = max(niceness, os.getpriority(os.PRIO_PROCESS, thread))
        with suppress(PermissionError):  # some containers forbid the call altogether
            os.setpriority(os.PRIO_PROCESS, thread, lower)
