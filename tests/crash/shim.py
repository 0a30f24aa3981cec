"""Kills this process at one of its file-system events: builds `kill_at.c`, loads it and reads its log."""

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

BEFORE, AFTER, HALFWAY = "before", "after", "halfway"


@dataclass(frozen=True, slots=True)
class Event:
    """File-system event `number` of a run, from 1: the call and its path."""

    number: int
    call: str
    path: Path


def compiler() -> str | None:
    """The C compiler of this machine, or None."""
    return shutil.which("cc") or shutil.which("gcc")


def build(directory: Path) -> Path:
    """Compile the shim into `directory`."""
    library = directory / "kill_at.so"
    source = Path(__file__).with_name("kill_at.c")
    subprocess.run([compiler() or "cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def arm(library: Path, under: Path, at: int, how: str, log: Path) -> None:
    """Log every event under `under` to `log` from now on, and kill this process at number `at`; 0 is never.

    Raises:
        OSError: the kernel does not let a process watch its own system calls.
    """
    arguments = (str(under).encode(), ctypes.c_long(at), how.encode(), str(log).encode())
    if not ctypes.CDLL(str(library)).kill_at_arm(*arguments):
        raise OSError("the kernel refuses a seccomp filter")


def read_events(log: Path) -> list[Event]:
    """The events that a run logged, in order."""
    fields = (line.split(" ", 2) for line in log.read_text().splitlines())
    return sorted((Event(int(number), call, Path(path)) for number, call, path in fields), key=lambda e: e.number)
