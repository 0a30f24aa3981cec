"""Runs that start in milliseconds: a server imports the libraries of a light run once, and forks for each run.

A run whose checkpoints exist already spends most of its time on imports. `emtoolkit.cli.fork_server` is the server.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress

NUMBER_BYTES = 8
LARGEST_REQUEST = 100_000_000
MOST_DESCRIPTORS = 100
_SERVER = "emtoolkit.cli.fork_server"
_ENV = "/usr/bin/env"


class Forked:
    """A run that the server has forked, with the part of the interface of `Popen` that a sweep uses."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._channel = channel

    def wait(self) -> int:
        """Wait for the end of the run, and return its exit code as `Popen.wait`, to be called once.

        If the server was killed, the run has saved and stopped, as after SIGTERM.
        """
        with self._channel:
            code = number(self._channel)
        self.returncode = -signal.SIGTERM if code is None else code
        return self.returncode


class ForkServer:
    """The server of one sweep, which starts with the first run that it can fork.

    `end_with_parent` is called in the server before its program starts.
    """

    def __init__(self, end_with_parent: Callable[[], None]) -> None:
        self._end_with_parent = end_with_parent
        self._server: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        # Where a process cannot be waited for beside a socket, each run is a program of its own.
        self._works = hasattr(os, "pidfd_open")

    def start(
        self, argv: Sequence[str], environment: Mapping[str, str], log: int, inherited: Collection[int]
    ) -> Forked | None:
        """Fork a run with `argv`, the output to the descriptor `log`; None if it must start as a program of its own."""
        command = _words_of(argv)
        if command is None or not self._works or len(inherited) + 2 > MOST_DESCRIPTORS:
            return None
        variables, words = command
        content = json.dumps({"words": words, "environment": {**environment, **variables}}).encode()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                requests = self._running(environment)
                socket.send_fds(
                    requests, [len(content).to_bytes(NUMBER_BYTES, "big")], [log, theirs.fileno(), *inherited]
                )
                requests.sendall(content)
            pid = number(ours)
        except OSError:
            pid = None
        if pid is None:
            self._works = False
            ours.close()
            return None
        return Forked(pid, ours)

    def close(self) -> None:
        """End the server, whose runs have ended."""
        if self._requests is not None:
            self._requests.close()
        if self._server is not None:
            self._server.wait()

    def _running(self, environment: Mapping[str, str]) -> socket.socket:
        if self._requests is None:
            self._requests, theirs = socket.socketpair()
            with theirs:
                self._server = subprocess.Popen(
                    [sys.executable, "-m", _SERVER],
                    env=dict(environment),
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    process_group=0,
                    preexec_fn=self._end_with_parent,
                )
        return self._requests


def sent(channel: socket.socket, value: int) -> None:
    """Send a number to whoever waits, who may have ended."""
    with suppress(OSError):
        channel.sendall(value.to_bytes(NUMBER_BYTES, "big", signed=True))


def number(channel: socket.socket) -> int | None:
    """The next number that `sent` sends, None where nobody is left to send one."""
    content = received(channel, NUMBER_BYTES)
    return int.from_bytes(content, "big", signed=True) if content else None


def received(channel: socket.socket, size: int) -> bytes:
    """The next `size` bytes, none where the other side has closed before."""
    content = bytearray()
    while len(content) < size:
        try:
            part = channel.recv(size - len(content))
        except ConnectionError:
            part = b""
        if not part:
            return b""
        content += part
    return bytes(content)


def _words_of(argv: Sequence[str]) -> tuple[dict[str, str], list[str]] | None:
    """The variables that `argv` sets and the words after `python -m emtoolkit`; None for another command.

    A variable other than PATH may decide something while a library is imported.
    """
    words, variables = list(argv), {}
    if words[:1] == [_ENV]:
        words.pop(0)
        while words and words[0].startswith("PATH="):
            variables["PATH"] = words.pop(0).removeprefix("PATH=")
    if words[:3] != [sys.executable, "-m", "emtoolkit"]:
        return None
    return variables, words[3:]
