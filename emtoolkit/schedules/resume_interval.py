"""How often the resume state is saved: an interval of time or of steps."""

import re
from dataclasses import dataclass

from emtoolkit.errors import ConfigError, shown

_INTERVAL = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(s|min|h|steps?)")
# In digits: Python refuses to read 4,300, and as seconds 309 are infinite.
_LONGEST = 18
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class ResumeInterval:
    """A number of seconds or a number of steps; never if both are None."""

    seconds: float | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> "ResumeInterval":
        """`10min`, `30s`, `2h`, `50 steps`, or `never`.

        Raises:
            ConfigError: `text` is none of these.
        """
        if text == "never":
            return cls()
        match = _INTERVAL.fullmatch(text) if isinstance(text, str) else None
        if match and len(match[1]) <= _LONGEST and float(match[1]) > 0:
            if match[2] in _SECONDS:
                return cls(seconds=float(match[1]) * _SECONDS[match[2]])
            if match[1].isdigit():
                return cls(steps=int(match[1]))
        raise ConfigError(f"{shown(text)} is not an interval such as 10min, 30s, 2h, '50 steps' or never")

    def is_due(self, step: int, seconds_since_last: float) -> bool:
        """Whether the resume state is to be saved at `step`."""
        if self.steps is not None:
            return step % self.steps == 0
        return self.seconds is not None and seconds_since_last >= self.seconds
