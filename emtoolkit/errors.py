"""One kind of error for everything a user can mend: a sentence that says what is wrong and what would be right."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A bad input. Its text is one sentence for the user; the command line prints it and exits with code 2."""


class ScheduleError(UserError):
    """A schedule that cannot be read, or that asks for a step which training never reaches."""


class ConfigError(UserError):
    """A configuration file, `--set` value or flag that does not describe a run."""


class DataError(UserError):
    """A dataset that cannot be trained on; names the file and the line."""


class NotHereError(DataError):
    """A dataset that is not on this machine and cannot be had; a plan may do without it."""


class CheckpointError(UserError):
    """A checkpoint, or a directory of them, that is not what it should be; names the path."""


def first_line(error: Exception) -> str:
    """What a library's `error` says, without the pages that follow; for the middle of a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def nearest(word: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'dense-early'?"` for the choice closest to `word`, or `""` if none is close."""
    matches = get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""
