"""How checkpoints are saved: the options that the callback, the config and a saving session share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from emtoolkit.errors import ConfigError
from emtoolkit.number_checks import is_count, is_number
from emtoolkit.schedules.resume_interval import ResumeInterval
from emtoolkit.schedules.resume_keep import kept_schedule
from emtoolkit.stop_signals import check_names

OnError = Literal["raise", "warn"]
OnNan = Literal["stop", "continue"]


# Without slots, so that the defaults can be read from the class, as in `SaveOptions.resume_every`.
@dataclass(frozen=True)
class SaveOptions:
    """How checkpoints are saved; each option is declared and checked here and nowhere else.

    Raises:
        ConfigError: an option has no meaning; the message begins with its name.
    """

    resume_every: str = "10min"
    """How often the resume state is saved: `10min`, `50 steps`, `never`. A signal saves it, too."""
    signals: Sequence[str] | None = None
    """Which signals save the state and stop the training besides SIGINT and SIGTERM, which always do; None means
    SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU, where the program neither ignores nor handles them itself."""
    resume_keep: str = "newest"
    """Which resume states stay, also after training: those at the steps of a schedule such as `every:100`, besides the
    newest while training runs; by default no other."""
    resume_at_end: bool = False
    """Save the resume state at the end of training too, and keep it."""
    allow_unreachable: bool = False
    """Warn about steps written out by hand past the end of training, instead of raising an error."""
    publish: bool = True
    """Log each checkpoint as a version of a W&B artifact, if a W&B run is active."""
    publish_timeout: float = 60.0
    """How many seconds the end of training waits for W&B at most."""
    max_in_flight: int = 2
    """How many copies of the trainable weights may be in memory at the same time."""
    on_error: OnError = "raise"
    """What a failed save does: `raise` in the training thread at the next step, or `warn`."""

    on_nan: OnNan = "continue"
    """What weights that are not finite do: `stop` the training in place of a checkpoint, or `continue`."""
    overlap: bool = False
    """Copy the weights beside the next step where nothing else may change them, instead of before it."""

    def __post_init__(self) -> None:
        try:
            ResumeInterval.parse(self.resume_every)
        except ConfigError as error:
            raise ConfigError(f"resume_every: {error}") from None
        try:
            kept_schedule(self.resume_keep)
        except ConfigError as error:
            raise ConfigError(f"resume_keep: {error}") from None
        try:
            check_names(self.signals)
        except ConfigError as error:
            raise ConfigError(f"signals: {error}") from None
        if not (is_number(self.publish_timeout) and self.publish_timeout >= 0):
            raise ConfigError(f"publish_timeout: {self.publish_timeout!r} is not a number of seconds, 0 or more")
        if not is_count(self.max_in_flight):
            raise ConfigError(f"max_in_flight: {self.max_in_flight!r} is not a number of copies, 1 or more")
        if self.on_error not in get_args(OnError):
            raise ConfigError(f"on_error: {self.on_error!r} is neither 'raise' nor 'warn'")
        if self.on_nan not in get_args(OnNan):
            raise ConfigError(f"on_nan: {self.on_nan!r} is neither 'stop' nor 'continue'")
        for name in ("resume_at_end", "allow_unreachable", "publish", "overlap"):
            # Any text would be true, "no" as well.
            if not isinstance(value := getattr(self, name), bool):
                raise ConfigError(f"{name}: {value!r} is neither True nor False")

    @property
    def resume_interval(self) -> ResumeInterval:
        """The interval that `resume_every` writes."""
        return ResumeInterval.parse(self.resume_every)
