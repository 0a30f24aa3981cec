"""How long work tells what it is doing: one callback, in place of the libraries' own bars."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

# Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]
# Opens a bar for one stretch of work, and takes it away after it.
Bar = Callable[[], AbstractContextManager[Progress]]


def silent(what: str, done: int, total: int) -> None:
    """The progress callback of who asked for none."""


@contextmanager
def no_bar() -> Iterator[Progress]:
    """In place of a bar, where nobody looks."""
    yield silent


@contextmanager
def no_library_bars() -> Iterator[None]:
    """Keep transformers from drawing bars of its own."""
    # Here because it takes seconds to import, and a download that reports its progress needs no transformers.
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # as above
