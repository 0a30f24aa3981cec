"""Trainings that a time limit stops again and again before they train a step: they fail, and are not requeued."""

import re
from collections.abc import Callable
from dataclasses import replace

from emtoolkit.sweeps.attempts import Attempt

# How a training says that it saved its state and stopped.
_STOPPED = re.compile(r"after step (\d+)")
_MOST_STALLS = 2


def carried_over(attempt: Attempt, before: Attempt) -> Attempt:
    """`attempt`, which begins after `before`, with what `before` had reached of the same training."""
    if before.inputs != attempt.inputs:
        return attempt
    stalls = before.stalls if before.state in ("interrupted", "running") else 0
    return replace(attempt, step=before.step, stalls=stalls)


def after_stop(attempt: Attempt, *, trains: bool, by_time_limit: Callable[[], bool]) -> Attempt:
    """`attempt`, which a signal stopped, with the step that it reached; failed if it stalls.

    `trains` says that the run is known to be a training; another program is one if it says after which step it stopped.
    `by_time_limit` is called if it has trained no new step.
    """
    found = _STOPPED.search(attempt.error or "")
    step = None if found is None else int(found[1])
    if step is not None and step > (attempt.step or 0):
        return replace(attempt, step=step, stalls=0)
    if not (trains or step is not None or attempt.step is not None) or not by_time_limit():
        return attempt
    stalls = attempt.stalls + 1
    if stalls < _MOST_STALLS:
        return replace(attempt, stalls=stalls)
    reached = "its first step" if attempt.step is None else f"a step after step {attempt.step}"
    return replace(
        attempt,
        state="failed",
        stalls=stalls,
        error=f"the time limit stopped the run {stalls} times in a row before it had trained {reached}; give it more "
        "time (--slurm time=4:00:00), or save its state more often (checkpointing.resume_every), and submit it with "
        "--retry-failed",
    )
