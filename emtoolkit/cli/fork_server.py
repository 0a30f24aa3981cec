"""`python -m emtoolkit.cli.fork_server` imports the libraries of a light command once, and forks for each command.

Standard input is the socket of `emtoolkit.sweeps.forked`. A request is the length of a JSON object, 8 bytes, then the
object with `words` and `environment`; with the length come the descriptors of the log, of the run's own channel, and
those that the run inherits. The channel gets the process id, and later the exit code, each 8 bytes. A forked process is
what `python -m emtoolkit WORDS…` is, and saves and stops when the server ends.
"""

import gc
import importlib
import json
import os
import runpy
import selectors
import socket
import sys
from tempfile import TemporaryDirectory
from typing import Any

from emtoolkit.sweeps.forked import LARGEST_REQUEST, MOST_DESCRIPTORS, NUMBER_BYTES, received, sent
from emtoolkit.sweeps.processes import end_with_parent

# None imports torch, which has threads. W&B's client imports the last when a run starts.
_LIBRARIES = ("emtoolkit.cli.app", "emtoolkit.cli.render", "emtoolkit.training.reusing", "wandb", "wandb.sdk.launch")


def serve(requests: socket.socket) -> list[str] | None:
    """Fork for each request; returns the words of its command in a forked process, None in the server."""
    # W&B's client makes directories when it is imported and removes them at exit: each process needs its own.
    directories = [each for each in gc.get_objects() if isinstance(each, TemporaryDirectory)]
    # A collection in a forked process would visit the objects of the libraries, and copy their memory.
    gc.freeze()
    events = selectors.DefaultSelector()
    events.register(requests, selectors.EVENT_READ)
    while True:
        for key, _ in events.select():
            if key.data is not None:
                pid, channel = key.data
                events.unregister(key.fileobj)
                os.close(key.fd)
                _, status = os.waitpid(pid, 0)
                sent(channel, os.waitstatus_to_exitcode(status))
                channel.close()
                continue
            request, descriptors = _receive(requests)
            if request is None:
                return None
            log, channel = descriptors[0], socket.socket(fileno=descriptors[1])
            if (pid := os.fork()) == 0:
                _close(events)
                _become(request, log)
                for directory in directories:
                    _renew(directory)
                # The channel stays open: the sweep sees the end of this process there if the server was killed.
                channel.detach()
                return [*map(str, request["words"])]
            # Whoever is told the number may send a signal to the group.
            os.setpgid(pid, pid)
            for descriptor in (log, *descriptors[2:]):
                os.close(descriptor)
            events.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, channel))
            sent(channel, pid)


def _receive(requests: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """A request with its descriptors; None once the sweep has ended."""
    length, descriptors, _, _ = socket.recv_fds(requests, NUMBER_BYTES, MOST_DESCRIPTORS)
    size = int.from_bytes(length, "big")
    content = received(requests, size) if 0 < size <= LARGEST_REQUEST else b""
    return (json.loads(content), descriptors) if content else (None, descriptors)


def _close(events: selectors.BaseSelector) -> None:
    """Close what belongs to the server: its socket, and the channels of the other processes."""
    for key in [*events.get_map().values()]:
        if key.data is None:
            continue
        os.close(key.fd)
        key.data[1].close()
    events.close()


def _become(request: dict[str, Any], log: int) -> None:
    """Take over what makes one process differ from another."""
    os.setpgid(0, 0)
    end_with_parent()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    os.environ.clear()
    os.environ.update(request["environment"])


def _renew(directory: "TemporaryDirectory[str]") -> None:
    """Give this process a temporary directory of its own under the same Python object."""
    finalizer = directory._finalizer  # type: ignore[attr-defined]  # else this process removes the server's directory
    finalizer.detach()
    TemporaryDirectory.__init__(directory)


def main() -> None:
    """Serve until the sweep ends, and be the command in each forked process."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    # `socket` would close the descriptor 0, which is /dev/null in a forked process.
    requests = socket.socket(fileno=0)
    words = serve(requests)
    requests.detach()
    if words is not None:
        sys.argv = ["emtoolkit", *words]
        runpy.run_module("emtoolkit", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
