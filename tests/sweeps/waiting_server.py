"""The fork server with runs that write a line to a pipe and wait for a signal."""

import os
import sys
import threading
from typing import Any

from emtoolkit.cli import fork_server


def wait(*_: Any, **__: Any) -> None:
    with open(sys.argv[1], "w", encoding="utf-8") as pipe:
        pipe.write(f"{os.getpid()} {os.getppid()}\n")
    threading.Event().wait()


if __name__ == "__main__":
    fork_server.runpy.run_module = wait
    fork_server.main()
