"""The errors of bad input: each is one sentence that says what is wrong and what would be right.

UserError
├── ScheduleError
├── ConfigError
├── DataError
│   └── NotHereError
├── DivergedError
└── CheckpointError
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from reprlib import Repr

_COUNTS = re.compile(r"\d+ validation errors? for ")
_LONGEST_QUOTE = 300
_LONGEST_SENTENCE = 3000
_REPR = Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 4, _LONGEST_QUOTE, _LONGEST_QUOTE, 80
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = _REPR.maxset = 12


class UserError(ValueError):
    """Bad input. The text is one sentence for the user; the command line prints it and exits with code 2.

    A text that quotes a long value is cut in its middle, and line breaks and control characters are escaped.
    """

    def __init__(self, text: object = "") -> None:
        super().__init__(_one_line(str(text), _LONGEST_SENTENCE))


class ScheduleError(UserError):
    """A schedule that cannot be read, or that contains a step which training never reaches."""


class ConfigError(UserError):
    """A configuration file, `--set` value or flag that does not describe a run."""


class DataError(UserError):
    """A dataset that cannot be trained on; the text names the file and the line."""


class NotHereError(DataError):
    """A dataset that is not on this machine and cannot be downloaded; a plan can be made without it."""


class DivergedError(UserError):
    """A training whose loss, gradients or weights are no longer finite numbers, at or before `step`."""

    def __init__(self, text: str, step: int = 0) -> None:
        super().__init__(text)
        self.step = step


class CheckpointError(UserError):
    """A checkpoint, or a directory of checkpoints, that is missing, damaged or another one; the text names the path."""


@contextmanager
def located(place: str) -> Iterator[None]:
    """Begin the text of every `UserError` raised inside with `place`, such as a file and a line."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{place}: {error}") from error


@contextmanager
def renamed(place: str, name: str) -> Iterator[None]:
    """Call the place of every `UserError` raised inside `name`, as the user knows it, if the text begins with `place`.

    A config key, for example, may be a flag of this command.
    """
    try:
        yield
    except UserError as error:
        if not str(error).startswith(f"{place}: "):
            raise
        raise type(error)(f"{name}: {str(error).removeprefix(f'{place}: ')}") from error


def first_line(error: Exception) -> str:
    """The first line of a library's `error` that says something, without its full stop, to quote inside a sentence.

    The first line of pydantic's errors only counts, and one that ends with a colon announces the next.
    """
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    others = [line.strip() for line in others if line.strip()]
    if _COUNTS.match(first):
        # The line of the field, if there is one, and the line of the problem, which ends with its type.
        first = ": ".join(line.partition(" [type=")[0] for line in others[: 1 if " [type=" in others[0] else 2])
    elif first.endswith(":") and others:
        first = f"{first} {others[0]}"
    return shortened(first.rstrip("."))


def shown(value: object) -> str:
    """`value` as a message quotes it: its `repr`, cut short where it is long or deeply nested."""
    return shortened(_REPR.repr(value))


def shortened(text: str) -> str:
    """`text` on one line, cut in its middle where it is long."""
    return _one_line(text, _LONGEST_QUOTE)


def _one_line(text: str, longest: int) -> str:
    text = _cut(text, longest)
    if text.isprintable():
        return text
    return _cut("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), longest)


def _cut(text: str, longest: int) -> str:
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def nearest(word: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'dense-early'?"` for the choice closest to `word`, or `""` if none is close."""
    if len(word) > _LONGEST_QUOTE:
        return ""
    matches = get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""
