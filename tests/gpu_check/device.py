"""The device under check, its sizes, and what every check returns."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch

T = TypeVar("T")
Result = Literal["PASS", "FAIL", "INFO", "SKIP"]
# About how many cycles a GPU runs in a second; only the order of magnitude matters.
_CYCLES = 1.7e9


@dataclass(frozen=True)
class Outcome:
    """What one check found; `note` is a number or a reason. INFO is a figure that no bar judges."""

    name: str
    result: Result
    note: str = ""

    @classmethod
    def of(cls, name: str, passed: bool, note: object = "") -> "Outcome":
        return cls(name, "PASS" if passed else "FAIL", str(note))

    @classmethod
    def skipped(cls, name: str, why: str) -> "Outcome":
        return cls(name, "SKIP", why)


@dataclass(frozen=True)
class Device:
    """A GPU or the CPU. `home` is where trainings write; with `processes` some trainings run, and die, in their own."""

    name: Literal["cuda", "cpu"]
    home: Path
    small: bool = True
    processes: bool = True

    @property
    def is_gpu(self) -> bool:
        return self.name == "cuda"

    def synchronize(self) -> None:
        """Wait until the device has finished everything."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def keep_busy(self, seconds: float) -> None:
        """Queue a kernel on the current stream, so that everything after it is late; does nothing on a CPU."""
        if self.is_gpu:
            torch.cuda._sleep(int(seconds * _CYCLES))


def in_thread(work: Callable[[], T]) -> T:
    """The result of `work` in another thread, as the disk thread reads a copy."""
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]
