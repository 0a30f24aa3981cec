"""Questions to W&B that are asked again: W&B's client tries again after an error, and not after a bad answer.

A bad answer is one that a proxy cut, an HTML page with status 200, or text that is no JSON.
"""

import re
import time
from collections.abc import Callable
from typing import TypeVar

# The pauses before the same question, in seconds, and the time after which none is asked again.
_PAUSES = (0.5, 1.0, 2.0)
_SECONDS = 20.0
# The statuses of answers that stay the same: bad request, no key, no permission, not found, conflict.
_FOR_GOOD = re.compile(r"\b(400|401|403|404|409)\b")

T = TypeVar("T")


def retried(ask: Callable[[], T]) -> T:
    """The answer of `ask`, which is called again after a bad answer; `ask` must change nothing on W&B.

    Raises:
        Exception: whatever W&B's client raises, in the last call.
    """
    deadline = time.monotonic() + _SECONDS
    for pause in _PAUSES:
        try:
            return ask()
        except Exception as error:
            if _is_answer(error) or _has_waited(error) or time.monotonic() + pause >= deadline:
                raise
        time.sleep(pause)
    return ask()


def is_key_refused(error: BaseException) -> bool:
    """Whether W&B refuses the API key."""
    import wandb

    return isinstance(error, wandb.errors.AuthenticationError) or re.search(r"\b401\b", str(error)) is not None


def _has_waited(error: Exception) -> bool:
    """Whether the client has asked again and again until its time limit, or its process has ended."""
    return isinstance(error, TimeoutError) or "service process is" in str(error)


def _is_answer(error: Exception) -> bool:
    """Whether `error` is the server's answer, which would be the same again."""
    # The client reports a null in the answer as a plain ValueError, and most times wraps it.
    inner = getattr(error, "exc", error)
    return type(inner) is ValueError or is_key_refused(error) or _FOR_GOOD.search(str(error)) is not None
