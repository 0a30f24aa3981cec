"""Progress of long work: one callback that takes the place of the libraries' own bars."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

# Called with a description of the work, the amount done, and the total amount in the same unit.
Progress = Callable[[str, int, int], None]
# Opens a progress bar; leaving the context removes the bar.
Bar = Callable[[], AbstractContextManager[Progress]]


def silent(what: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""


def counting(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    """A function that is called with parts of `total`, and shows their sum."""
    done = 0

    def count(part: int) -> None:
        nonlocal done
        done += part
        progress(what, done, total)

    return count


@contextmanager
def no_bar() -> Iterator[Progress]:
    """The bar that shows nothing."""
    yield silent


@contextmanager
def no_library_bars() -> Iterator[None]:
    """Keep transformers from drawing bars of its own."""
    # Transformers takes seconds to import, and downloads report progress without it.
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # as above
