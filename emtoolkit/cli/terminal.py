"""Standard output for results, standard error for log lines and one progress bar; the width to print in."""

import logging
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from emtoolkit.launch import is_local_main_process
from emtoolkit.progress import Bar, Progress, silent

if TYPE_CHECKING:
    from rich.console import RenderableType

# Shorter work shows neither a bar nor a line.
_SECONDS_BEFORE_BAR = 2.0
# Where standard error is no terminal, long work writes a line this often after the first.
_SECONDS_BETWEEN_LINES = 30.0

# The bars of transformers, datasets and huggingface_hub, which read these variables when they are first imported.
_BARS_IN_A_TERMINAL = {"TQDM_DELAY": str(_SECONDS_BEFORE_BAR), "TQDM_LEAVE": ""}
_BARS_ELSEWHERE = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

# Transformers warns that arguments and attributes with this name have a new one, which PEFT and transformers 5.0 do
# not know yet; a user of the command line can change neither.
_RENAMED_IN_TRANSFORMERS = r"`\w*gradient_checkpointing\w*` is deprecated"


def terminal_width() -> int:
    """The columns to print in: $COLUMNS, or the width of the terminal, or 80 where output is no terminal."""
    return shutil.get_terminal_size((80, 24)).columns


def show(result: "RenderableType") -> None:
    """Print a result to standard output: a string as it is, else no wider than the terminal and with colours there."""
    if isinstance(result, str):
        print(result)  # noqa: T201 - the result
        return
    from rich.console import Console, Group

    # Without a colour system rich writes no escape codes at all, not even those for bold text.
    console = Console(
        width=terminal_width(),
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        markup=False,
        emoji=False,
    )
    with console.capture() as capture:
        # In a group a `Text` keeps its own way of breaking lines.
        console.print(Group(result), crop=False)
    # Rich fills each line of a table with spaces up to its width.
    text = re.sub(r" +((?:\x1b\[0m)?)$", r"\1", capture.get(), flags=re.MULTILINE)
    print(text, end="")  # noqa: T201 - the result


def shows_bars() -> bool:
    """Whether this process draws progress bars: standard error is a terminal."""
    return sys.stderr.isatty() and is_local_main_process()


def training_bar() -> Bar | None:
    """The bar for training steps; None where each logging interval writes a line instead."""
    return progress_bar if shows_bars() else None


def progress_bar() -> AbstractContextManager[Progress]:
    """Show the progress of work that takes long: one bar in a terminal, a line now and then elsewhere."""
    return _bar() if shows_bars() else _lines()


@contextmanager
def _bar() -> Iterator[Progress]:
    from tqdm import tqdm

    # Without `miniters` tqdm learns to redraw after many bytes, and does not redraw after a few checkpoints.
    look: dict[str, Any] = {"bar_format": "{desc:<32} {percentage:3.0f}% |{bar}| {elapsed}", "mininterval": 0.1}
    with tqdm(**look, miniters=0, leave=False, delay=_SECONDS_BEFORE_BAR, disable=False) as bar:

        def show(what: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description_str(what, refresh=False)
            bar.update(done - bar.n)

        yield show


@contextmanager
def _lines() -> Iterator[Progress]:
    if not is_local_main_process():
        yield silent
        return
    next_line: float | None = None

    def show(what: str, done: int, total: int) -> None:
        nonlocal next_line
        now = time.monotonic()
        # The seconds count from the beginning of the work, not of the imports.
        next_line = now + _SECONDS_BEFORE_BAR if next_line is None else next_line
        if total and now >= next_line:
            next_line = now + _SECONDS_BETWEEN_LINES
            print(f"emtoolkit: {what}: {100 * done // total} %", file=sys.stderr)  # noqa: T201 - a line of progress

    yield show


class _LogHandler(logging.Handler):
    """Writes log lines to standard error, above the progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        if shows_bars() and "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(self.format(record), file=sys.stderr)
        else:
            print(self.format(record), file=sys.stderr)  # noqa: T201 - a log line


@contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Send the output of libraries to standard error, without their progress frames and developer warnings."""
    handler = _LogHandler()
    handler.setFormatter(logging.Formatter("emtoolkit: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("emtoolkit").setLevel(logging.INFO)
    # When imported on a machine without a GPU, it logs an error about a package of CPU kernels.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    logging.getLogger("transformers.trainer_utils").addFilter(_is_for_users)
    warnings.filterwarnings("ignore", message=_RENAMED_IN_TRANSFORMERS, category=FutureWarning)
    with _environment(_BARS_IN_A_TERMINAL if shows_bars() else _BARS_ELSEWHERE):
        if is_local_main_process():
            with redirect_stdout(sys.stderr):
                yield
            return
        # The process with local rank 0 says the same.
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield


def _is_for_users(record: logging.LogRecord) -> bool:
    """Whether a log record of transformers says something that a user can act on."""
    # The Trainer gives the model's config the special tokens of its tokenizer, which is what a user wants.
    return not str(record.msg).startswith("The tokenizer has new PAD/BOS/EOS tokens")


@contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Set those of the variables that the user has not set, and remove them afterwards."""
    missing = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
