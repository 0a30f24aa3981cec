"""The signals that make a training save its state and stop: which of them a system has, and their names."""

import signal
from collections.abc import Sequence

from emtoolkit.errors import ConfigError, nearest, shown

# Ctrl-C, and what every launcher and scheduler sends to end a program. They always save and stop.
ENDING = (signal.SIGINT, signal.SIGTERM)
# What schedulers send some time before they kill a job, and SIGHUP of a closed terminal; they may come repeatedly, as
# SIGXCPU does every second. Windows has none of them.
NOTICES: tuple[signal.Signals, ...] = tuple(
    signal.Signals[name] for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if name in signal.Signals.__members__
)
NAMES = tuple(number.name for number in (*ENDING, *NOTICES))


def check_names(names: object) -> None:
    """Check that `names` is None or a list of names of signals that can stop a training.

    Raises:
        ConfigError: it is not.
    """
    if names is None:
        return
    if not isinstance(names, list | tuple):
        raise ConfigError(f"{shown(names)} is not a list of signals, such as [SIGUSR1, SIGXCPU]")
    if not names:
        raise ConfigError("[] names no signal; write [SIGTERM] if only SIGINT and SIGTERM are to stop the training")
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"{shown(name)} {_why_not(name)}")


def notices(names: Sequence[str] | None) -> tuple[signal.Signals, ...]:
    """The signals among `names` besides SIGINT and SIGTERM, which always stop a training; None means all of them."""
    return NOTICES if names is None else tuple(number for number in NOTICES if number.name in names)


def _why_not(name: object) -> str:
    if name in ("SIGKILL", "SIGSTOP"):
        return "cannot be caught by any program; choose a signal that the scheduler sends before it"
    word = str(name).upper()
    hint = nearest(word, NAMES) if isinstance(name, str) and word not in signal.Signals.__members__ else ""
    hint = f"; did you mean {word!r}?" if word in NAMES else hint
    return f"is not one of the signals that can stop a training: {', '.join(NAMES)}{hint}"
