"""Child processes that do not outlive the parent: it passes every signal on, and Linux tells them of its end."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any

from emtoolkit.stop_signals import ENDING, NOTICES
from emtoolkit.sweeps.forked import Forked, ForkServer

# The first signal makes a training save and stop, the second stop at once; a child still alive ignores signals.
_KILL_AT = 3


# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None


def end_with_parent() -> None:
    """Let Linux send SIGTERM to this child when its parent ends in any way: a training then saves and stops."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Processes:
    """The running children by key, each in its own process group.

    In the terminal's group a child would get Ctrl-C twice, from the terminal and from the parent, and a second
    signal means "stop at once".
    """

    def __init__(self) -> None:
        self.signals: list[int] = []
        self._server = ForkServer(end_with_parent)
        self._children: dict[str, subprocess.Popen[bytes] | Forked] = {}
        self._signals_sent: dict[str, int] = {}
        self._ended: SimpleQueue[tuple[str, int]] = SimpleQueue()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Processes":
        if threading.current_thread() is threading.main_thread():
            # nohup ignores SIGHUP on purpose, so it stays ignored; a shell's "&" ignores SIGINT without being asked.
            caught = [number for number in NOTICES if signal.getsignal(number) is not signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._on_signal) for number in (*ENDING, *caught)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._children:
            self.signals.append(signal.SIGTERM)
            self._pass_on()
        while self._children:
            self.next_ended(None)
        self._server.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __len__(self) -> int:
        return len(self._children)

    def start(
        self,
        key: str,
        argv: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        inherited: Collection[int],
        *,
        fork: bool = False,
    ) -> None:
        """Start a child whose output is appended to the file `log`, and which inherits the descriptors `inherited`.

        With `fork` an emtoolkit command is forked from a process that has its libraries imported.

        Raises:
            OSError: the program does not exist or cannot be run.
        """
        with log.open("ab") as output:
            forked = self._server.start(argv, environment, output.fileno(), inherited) if fork else None
            child = forked or subprocess.Popen(
                argv,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
                pass_fds=tuple(inherited),
                # The function is one system call, and takes no lock that another thread could hold.
                preexec_fn=end_with_parent if _PRCTL is not None else None,
            )
        self._signals_sent[key] = 0
        self._children[key] = child
        threading.Thread(target=lambda: self._ended.put((key, child.wait())), daemon=True).start()
        # A signal that arrived while the child was starting has not reached it.
        self._pass_on()

    def next_ended(self, timeout: float | None) -> tuple[str, int] | None:
        """The key and exit code of the next child that ends, None if no child ends within `timeout` seconds."""
        try:
            key, exit_code = self._ended.get(timeout=timeout)
        except Empty:
            return None
        del self._children[key], self._signals_sent[key]
        return key, exit_code

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # A notice may come repeatedly, and a second signal would make the children stop at once.
        if number in ENDING or not self.signals:
            self.signals.append(number)
            self._pass_on()

    def _pass_on(self) -> None:
        for key, child in list(self._children.items()):
            if self._signals_sent[key] < len(self.signals):
                self._signals_sent[key] = len(self.signals)
                self._send(child)

    def _send(self, child: "subprocess.Popen[bytes] | Forked") -> None:
        # A program that is no training, such as torchrun, may know SIGINT and SIGTERM only; others would kill it.
        number = signal.SIGINT if self.signals[-1] == signal.SIGINT else signal.SIGTERM
        if child.returncode is None:
            try:
                os.killpg(child.pid, signal.SIGKILL if len(self.signals) >= _KILL_AT else number)
            except ProcessLookupError:
                return
