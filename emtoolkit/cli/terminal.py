"""Standard output and standard error: results on the one, progress bars and log lines on the other."""

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from emtoolkit.launch import is_local_main_process

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from emtoolkit.progress import Progress


def terminal_width() -> int:
    """The columns to print in: $COLUMNS, or the width of the terminal, or 80 where output is no terminal."""
    return shutil.get_terminal_size((80, 24)).columns


# Of work that is mostly done sooner, nobody needs to see a bar flash.
_SECONDS_BEFORE_BAR = 2.0


def bar_for_long_reading() -> "AbstractContextManager[Progress]":
    return progress_bar(_SECONDS_BEFORE_BAR)


@contextmanager
def progress_bar(delay: float = 0.0) -> "Iterator[Progress]":
    """A function that shows `what` is being done, and `done` of how much, when `delay` seconds have passed."""
    from tqdm import tqdm

    # A log that is no terminal keeps every state of the bar.
    often = 0.1 if sys.stderr.isatty() else 10
    shown: dict[str, Any] = {"bar_format": "{desc:<32} {percentage:3.0f}% |{bar}| {elapsed}", "mininterval": often}
    with tqdm(**shown, leave=False, delay=delay, disable=not is_local_main_process()) as bar:

        def show(what: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description_str(what, refresh=False)
            bar.update(done - bar.n)

        yield show


@contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Send what libraries print to stderr, and not at all what they warn their own developers of."""
    logging.basicConfig(level=logging.WARNING, format="emtoolkit: %(message)s")
    logging.getLogger("emtoolkit").setLevel(logging.INFO)
    # At its import it misses a package for CPUs, which nobody asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    if is_local_main_process():
        with redirect_stdout(sys.stderr):
            yield
        return
    # What this process would say another one says.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield
