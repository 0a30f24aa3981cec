"""Which of the launcher's processes this is, read from the environment that torchrun and `accelerate launch` set.

All processes read one config and find the same faults in it; the process with local rank 0 reports them.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from emtoolkit.errors import ConfigError
from emtoolkit.stop_signals import ENDING, NOTICES

# The variables with which `emtoolkit sweep` determines the place of its runs on W&B, as a W&B sweep does.
SWEEP_VARIABLES = {"WANDB_PROJECT": "EMTOOLKIT_SWEEP_PROJECT", "WANDB_ENTITY": "EMTOOLKIT_SWEEP_ENTITY"}
# The process with local rank 0 may still be importing torch when another process has found the fault.
_SECONDS_FOR_REPORT = 60.0


def process_count(environment: Mapping[str, str] = os.environ) -> int:
    """The number of processes that train together: `$WORLD_SIZE` under a launcher, which sets `$LOCAL_RANK`, else 1.

    Raises:
        ConfigError: `$WORLD_SIZE` is not a number of processes.
    """
    if "LOCAL_RANK" not in environment:
        return 1
    value = environment.get("WORLD_SIZE", "1")
    if not value.isdecimal() or int(value) == 0:
        raise ConfigError(f"WORLD_SIZE: {value!r} is not a number of processes, which is 1 or more")
    return int(value)


def is_requeued(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether Slurm runs this job again: `$SLURM_RESTART_COUNT`, which only a requeued job has, is 1 or more."""
    count = environment.get("SLURM_RESTART_COUNT", "0")
    return count.isdecimal() and int(count) > 0


def is_local_main_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one on its machine that prints, warns and draws progress bars."""
    return environment.get("LOCAL_RANK", "0") == "0"


def exit_with_error(sentence: str, environment: Mapping[str, str] = os.environ) -> NoReturn:
    """Print `sentence` to standard error, once on each machine, and exit with code 2."""
    if not is_local_main_process(environment):
        _wait_for_report()
    report = environment.get("TORCHELASTIC_ERROR_FILE")
    if report is None or not _write_report(sentence, report):
        print(sentence, file=sys.stderr)  # noqa: T201 - the error message
    if "LOCAL_RANK" in environment:
        _exit()
    sys.exit(2)


class Terminated(KeyboardInterrupt):
    """The signal `number`, such as SIGTERM, arrived, and is handled as Ctrl-C."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


def signal_of(interruption: KeyboardInterrupt) -> int:
    """The number of the signal that raised `interruption`."""
    return interruption.number if isinstance(interruption, Terminated) else signal.SIGINT


@contextmanager
def terminated_as_interrupted(numbers: Sequence[signal.Signals] = (signal.SIGTERM,)) -> Iterator[None]:
    """Raise `Terminated` where one of the signals `numbers` arrives, so that a program ends in one place.

    Does nothing outside the main thread, where Python allows no handlers, for a signal that is handled or ignored
    already, and under a launcher: a process that waits for another one would not run the handler.
    """
    is_main = threading.current_thread() is threading.main_thread()
    alone = is_main and "LOCAL_RANK" not in os.environ
    taken = [number for number in numbers if alone and signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of `terminated_as_interrupted`."""
    raise Terminated(number)


def ignore_signals() -> None:
    """Ignore the signals that stop a training: a launcher sends one to the others when the first process has exited."""
    for number in (*ENDING, *NOTICES):
        signal.signal(number, signal.SIG_IGN)


def _exit() -> NoReturn:
    """Exit with code 2 at once: the normal exit of the interpreter can abort while a process group has threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def _wait_for_report() -> None:
    """Wait until the launcher, which ends all processes when the first fails, ends this one; return after a minute.

    If this process failed first, the launcher would end the process that is about to report the error.
    """

    def end(*_: object) -> NoReturn:
        ignore_signals()
        _exit()

    signal.signal(signal.SIGTERM, end)
    time.sleep(_SECONDS_FOR_REPORT)


def _write_report(sentence: str, path: str) -> bool:
    """Make torchrun's own report, the last lines on the screen, print `sentence` in place of a traceback.

    The file format is that of `torch.distributed.elastic.multiprocessing.errors`.
    """
    extra = {"py_callstack": sentence, "timestamp": str(int(time.time()))}
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": sentence, "extraInfo": extra}}, file)
    except OSError:
        return False
    return True
