"""The processes that a launcher, torchrun or `accelerate launch`, started of this program, as the environment tells.

They read one config and find the same faults in it; one of them tells the user.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import NoReturn

from emtoolkit.errors import ConfigError

# How long a process that found a fault waits for the one that tells of it: that may still be importing torch.
_PATIENCE = 60.0


def process_count(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes train together: `$WORLD_SIZE` under a launcher, which sets `$LOCAL_RANK` too, else 1.

    Raises:
        ConfigError: it is no number of processes.
    """
    if "LOCAL_RANK" not in environment:
        return 1
    word = environment.get("WORLD_SIZE", "1")
    if not word.isdecimal() or int(word) == 0:
        raise ConfigError(f"WORLD_SIZE: {word!r} is not a number of processes, which is 1 or more")
    return int(word)


def is_local_main_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one on its machine that prints, warns and draws progress bars."""
    return environment.get("LOCAL_RANK", "0") == "0"


def exit_with_error(sentence: str, environment: Mapping[str, str] = os.environ) -> NoReturn:
    """Tell the user `sentence`, once on each machine, and exit with code 2."""
    if not is_local_main_process(environment):
        _wait_for_the_end()
    report = environment.get("TORCHELASTIC_ERROR_FILE")
    if report is None or not _reported(sentence, report):
        print(sentence, file=sys.stderr)  # noqa: T201 - the one sentence
    if "LOCAL_RANK" in environment:
        _exit()
    sys.exit(2)


def ignore_signals() -> None:
    """Let this process end as it is about to: a launcher signals all that are left when the first is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _exit() -> NoReturn:
    """At once: with the threads of a process group alive, the interpreter's own way out was seen to abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def _wait_for_the_end() -> None:
    """Return only if nobody told: a launcher ends all processes when the first fails, and it must not be this one."""

    def end(*_: object) -> NoReturn:
        ignore_signals()
        _exit()

    signal.signal(signal.SIGTERM, end)
    time.sleep(_PATIENCE)


def _reported(sentence: str, path: str) -> bool:
    """Have torchrun's own report, which is the last on the screen, say `sentence` in the place of a traceback.

    The file is that of `torch.distributed.elastic.multiprocessing.errors`.
    """
    extra = {"py_callstack": sentence, "timestamp": str(int(time.time()))}
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": sentence, "extraInfo": extra}}, file)
    except OSError:
        return False
    return True
