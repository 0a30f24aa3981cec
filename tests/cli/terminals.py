"""`emtoolkit` in a terminal of its own: a real pseudo-terminal of a given width, and what a user sees on it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import preloaded
from tests.processes import HANG_SECONDS

ESCAPE_CODE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@dataclass(frozen=True)
class Session:
    """A finished command; `output` is everything that it wrote to the terminal, escape codes included."""

    code: int
    output: str

    @property
    def lines(self) -> list[str]:
        """The lines without escape codes; of a line that was redrawn, the last state."""
        return [line.rstrip("\r").rpartition("\r")[2] for line in ESCAPE_CODE.sub("", self.output).split("\n")]


def in_terminal(
    *argv: str | Path, cwd: Path, columns: int = 80, environment: Mapping[str, str | None] | None = None
) -> Session:
    """Run `emtoolkit` with a pseudo-terminal as its standard input, output and error; None removes a variable."""
    changes: dict[str, str | None] = {"COLUMNS": None, "TERM": "xterm-256color", "NO_COLOR": None}
    variables = {**os.environ, **changes, **(environment or {})}
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        preloaded.command("emtoolkit", *argv),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=cwd,
        env={name: value for name, value in variables.items() if value is not None},
    )
    os.close(terminal)
    written = b""
    # The read fails when the last process that has the terminal open is gone.
    while chunk := _read(main):
        written += chunk
    os.close(main)
    return Session(process.wait(timeout=HANG_SECONDS), written.decode())


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""
