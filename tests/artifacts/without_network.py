"""`python -m tests.artifacts.without_network WORDS…`: an `emtoolkit WORDS…` on a node without a network.

The process is in a network namespace of its own, with a loopback device and without a route. It waits before step 5 for
the file `go`, and writes each address outside the node that it asks for into `asked`.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

from emtoolkit.cli.app import main
from emtoolkit.training.trainer import _RandomStateKeepingTrainer
from tests.processes import HANG_SECONDS

# From <linux/sched.h>, <linux/sockios.h> and <linux/if.h>.
_CLONE_NEWNET, _SIOCSIFFLAGS, _UP_AND_RUNNING = 0x40000000, 0x8914, 0x41


def leave_network() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _UP_AND_RUNNING))


def note_addresses(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and arguments[0].family != socket.AF_UNIX:
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host not in ("127.0.0.1", "::1", "localhost", None):
        with Path("asked").open("a") as file:
            file.write(f"{host}\n")


def wait_before_step_5() -> None:
    training_step = _RandomStateKeepingTrainer.training_step

    def waiting_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        end = time.monotonic() + HANG_SECONDS
        while self.state.global_step == 5 and not Path("go").exists() and time.monotonic() < end:
            time.sleep(0.01)
        return training_step(self, *args, **kwargs)

    _RandomStateKeepingTrainer.training_step = waiting_step  # type: ignore[method-assign]  # the waiting is in the test


if __name__ == "__main__":
    leave_network()
    sys.addaudithook(note_addresses)
    wait_before_step_5()
    main()
