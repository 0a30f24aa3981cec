"""Programs that start with torch, transformers and wandb imported, which is most of the work of a short program.

A server, one for each pytest worker, imports the libraries once and forks for each program; no module of emtoolkit is
imported before the fork. What a test starts is `preloaded_run.py`, a process that hands its arguments, environment,
working directory and standard streams to the server, passes signals on, and ends as the program ends. If it is killed,
so is the program.
"""

import atexit
import json
import os
import random
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent


def command(module: str, *words: str | Path) -> list[str]:
    """Starts what `python -m MODULE WORDS…` starts."""
    client = str(_ROOT / "tests" / "preloaded_run.py")
    return [sys.executable, "-I", "-S", client, _server(), module, *map(str, words)]


@cache
def _server() -> str:
    """The path of the socket of this process's server, which ends with this process."""
    path = Path(tempfile.mkdtemp(prefix="preloaded-"), "socket")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(32)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.preloaded", str(listening.fileno())],
            cwd=_ROOT,
            # The server ends when this end is closed, however this process ends.
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )
    atexit.register(_end, process, path)
    return str(path)


def _end(process: "subprocess.Popen[bytes]", path: Path) -> None:
    if process.stdin is not None:
        process.stdin.close()
    process.wait()
    path.unlink(missing_ok=True)
    path.parent.rmdir()


@dataclass
class _Program:
    """The process of a program, a descriptor that is readable once the process has ended, and who waits."""

    pid: int
    ended: int
    connection: socket.socket
    is_running: bool = True


def serve(listening: socket.socket) -> None:
    """Start a program for each connection; returns only in the processes of the programs, ready to run them."""
    import datasets  # noqa: F401  # for the programs
    import peft  # noqa: F401
    import torch.distributed.run  # noqa: F401
    import transformers.trainer  # noqa: F401
    import wandb  # noqa: F401

    events = selectors.DefaultSelector()
    events.register(listening, selectors.EVENT_READ)
    events.register(sys.stdin.fileno(), selectors.EVENT_READ)
    while True:
        for key, _ in events.select():
            if key.fileobj == sys.stdin.fileno():
                os._exit(0)
            if key.fileobj is not listening:
                _pass_on(events, key)
                continue
            connection, _ = listening.accept()
            request, streams = _receive(connection)
            pid = os.fork()
            if pid == 0:
                _close_all_but(streams)
                _become(request, streams)
                return
            for stream in streams:
                os.close(stream)
            program = _Program(pid, os.pidfd_open(pid), connection)
            events.register(program.ended, selectors.EVENT_READ, program)
            events.register(connection, selectors.EVENT_READ, program)


def _pass_on(events: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    """Signals to the program, or its status to whoever waits."""
    program: _Program = key.data
    if key.fileobj == program.ended:
        _, status = os.waitpid(program.pid, 0)
        program.is_running = False
        events.unregister(program.ended)
        os.close(program.ended)
        with suppress(OSError):  # whoever waits may have been killed
            program.connection.sendall(status.to_bytes(4, "big"))
        return
    try:
        signals = program.connection.recv(16)
    except OSError:
        signals = b""
    if program.is_running:
        for number in signals or [signal.SIGKILL]:
            os.kill(program.pid, number)
    if not signals:
        events.unregister(program.connection)
        program.connection.close()


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    content = b""
    while len(content) < int.from_bytes(size, "big"):
        content += connection.recv(1 << 20)
    return json.loads(content), streams


def _close_all_but(streams: list[int]) -> None:
    for number in range(3, 4096):
        if number not in streams:
            try:
                os.close(number)
            except OSError:
                continue


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Take over what makes one process differ from another."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # as long as the process
    for number, name, errors in ((1, "stdout", "strict"), (2, "stderr", "backslashreplace")):
        buffering = 1 if number == 2 or os.isatty(number) else -1
        stream = open(number, "w", encoding="utf-8", errors=errors, buffering=buffering, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    sys.path[0] = request["directory"]
    sys.path[1:1] = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.argv = list(request["argv"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()


def _run(module: str) -> int:
    """Run the program, and give its exit code."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)  # as Python does
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001  # as Python does
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    code = _run(sys.argv[0])
    # What Python does at its end, except for taking apart a hundred thousand objects of libraries.
    threading._shutdown()  # type: ignore[attr-defined]  # the wait for threads that Python has no public name for
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
