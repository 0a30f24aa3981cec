"""Programs that start with torch, transformers and wandb imported, which is most of the work of a short program.

A server, one for all workers of pytest, imports the libraries once and forks for each program; no module of emtoolkit
is imported before the fork. What a test starts is `preloaded_run.py`, a process that hands its arguments, environment,
working directory and standard streams to the server, passes signals on, and ends as the program ends. If it is killed,
so is the program.
"""

import atexit
import fcntl
import gc
import json
import os
import random
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
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


def interpreter() -> str:
    """The path of a program that is Python, and preloaded where its first word is `-m`.

    It is `sys.executable` in each preloaded program, so what a program starts is preloaded, too; torchrun starts its
    processes with `-u -m`.
    """
    return str(_interpreter(Path(_server())))


def _interpreter(path: Path) -> Path:
    return path.with_name("python")


def _write_interpreter(path: Path) -> None:
    client = str(_ROOT / "tests" / "preloaded_run.py")
    start = shlex.join([sys.executable, "-I", "-S", client, str(path)])
    preloaded = f'if [ "$1" = -m ]; then shift; exec {start} "$@"; fi'
    unbuffered = f'if [ "$1 $2" = "-u -m" ]; then shift 2; PYTHONUNBUFFERED=1 exec {start} "$@"; fi'
    script = _interpreter(path)
    script.write_text(f'#!/bin/sh\n{preloaded}\n{unbuffered}\nexec {shlex.quote(sys.executable)} "$@"\n')
    script.chmod(0o755)


@cache
def _server() -> str:
    """The path of the socket of the server, which ends with the last process that has called this function."""
    # The workers of one run of pytest share a server.
    name = f"preloaded-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
    path = Path(tempfile.gettempdir(), name, "socket")
    path.parent.mkdir(exist_ok=True)
    with (path.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        hold = socket.socket(socket.AF_UNIX)
        try:
            hold.connect(str(path))
        except OSError:
            _start(path)
            hold.connect(str(path))
        hold.sendall(bytes(4))
    atexit.register(hold.close)
    return str(path)


def _start(path: Path) -> None:
    path.unlink(missing_ok=True)
    _write_interpreter(path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(32)
        subprocess.Popen(
            [sys.executable, "-m", "tests.preloaded", str(listening.fileno()), str(path)],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )


@dataclass
class _Program:
    """The process of a program, a descriptor that is readable once the process has ended, and who waits."""

    pid: int
    ended: int
    connection: socket.socket
    is_running: bool = True


def serve(listening: socket.socket, path: Path) -> None:
    """Start a program for each connection; returns only in the processes of the programs, ready to run them."""
    gc.disable()  # Each full collection while libraries are imported takes 0.3 s.
    import_wandb()
    import datasets  # noqa: F401  # for the programs
    import peft  # noqa: F401
    import rich.table  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch.distributed.run  # noqa: F401
    import transformers.trainer  # noqa: F401
    import typer  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.models.qwen2 import modeling_qwen2  # noqa: F401

    get_checkpoint_conversion_mapping("qwen2")  # The first call makes a table of all models, in 0.2 s.

    _name_methods_without_their_source()
    # A collection in a program would visit the objects of the libraries, and copy their memory.
    gc.freeze()
    gc.enable()
    events = selectors.DefaultSelector()
    events.register(listening, selectors.EVENT_READ)
    holds = 0
    while True:
        for key, _ in events.select():
            if isinstance(key.data, _Program):
                _pass_on(events, key)
                continue
            if key.fileobj is not listening:
                events.unregister(key.fileobj)
                holds -= 1
                if holds == 0:
                    shutil.rmtree(path.parent, ignore_errors=True)
                    atexit._run_exitfuncs()
                    os._exit(0)
                continue
            connection, _ = listening.accept()
            request, streams = _receive(connection)
            if request is None:
                events.register(connection, selectors.EVENT_READ)
                holds += 1
                continue
            pid = os.fork()
            if pid == 0:
                _close(events)
                connection.close()
                _close_all_but(streams)
                sys.executable = str(_interpreter(path))
                _become(request, streams)
                return
            for stream in streams:
                os.close(stream)
            program = _Program(pid, os.pidfd_open(pid), connection)
            events.register(program.ended, selectors.EVENT_READ, program)
            events.register(connection, selectors.EVENT_READ, program)


def import_wandb() -> None:
    """Import W&B's client with what it would import later; first of all libraries, this takes a second less.

    For each class that W&B's client reads answers into, pydantic looks for the source among all imported modules.
    """
    import wandb.apis.public
    import wandb.cli.cli
    import wandb.sdk.launch.inputs.internal  # noqa: F401


def _name_methods_without_their_source() -> None:
    """Give torchrun's log of its rendezvous the names of methods from the frames alone.

    torchrun takes these names from `inspect.stack()`, 18 times in a launch. For each frame `inspect` looks for the
    source among all imported modules, of which a preloaded program has so many that a launch would take 1.2 s longer.
    """
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous

    dynamic_rendezvous.get_method_name = lambda depth=2: sys._getframe(depth).f_code.co_name


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


def _receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """What a program is to be, with its streams; None for a process of pytest that only holds the server."""
    word, streams, _, _ = socket.recv_fds(connection, 4, 3)
    size, content = int.from_bytes(word, "big"), b""
    if not size:
        return None, []
    while len(content) < size:
        content += connection.recv(1 << 20)
    return json.loads(content), streams


def _close(events: selectors.BaseSelector) -> None:
    """Close what Python would close later, when the program may have the same descriptors for something else."""
    for key in [*events.get_map().values()]:
        if isinstance(key.fileobj, socket.socket):
            key.fileobj.close()
    events.close()


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
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # as long as the process
    for number, name, errors in ((1, "stdout", "strict"), (2, "stderr", "backslashreplace")):
        buffering = 1 if number == 2 or os.isatty(number) or os.environ.get("PYTHONUNBUFFERED") else -1
        stream = open(number, "w", encoding="utf-8", errors=errors, buffering=buffering, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.chdir(request["directory"])
    sys.path[0] = request["directory"]
    sys.path[1:1] = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.argv = list(request["argv"])
    tempfile.tempdir = None
    _leave_shared_directories()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()


def _leave_shared_directories() -> None:
    """Keep the end of this program from removing what others use: temporary directories of libraries."""
    from wandb.sdk.data_types._private import MEDIA_TMP

    atexit.unregister(MEDIA_TMP.cleanup)
    for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]
        finalizer.atexit = False


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
    serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
    code = _run(sys.argv[0])
    # What Python does at its end, except for taking apart a hundred thousand objects of libraries.
    threading._shutdown()  # type: ignore[attr-defined]  # the wait for threads that Python has no public name for
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
