"""Runs that a time limit stops again and again before they get on: they fail, and are not requeued.

A training gets on with a new step, and an evaluation with an answer, a verdict or a value that it keeps.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

from emtoolkit.sweeps.attempts import Attempt

Kind = Literal["training", "evaluation"]

# How a training says that it saved its state and stopped, and how an evaluation does.
_STOPPED = re.compile(r"after step (\d+)")
_KEPT = re.compile(r"\b[1-9]\d* new .*\bare kept\b")
_MOST_STALLS = 2


def kind_of(argv: Sequence[str], *, trains: bool) -> Kind | None:
    """The kind of a run that `trains`, or else has the words `argv`; None for a program that is not emtoolkit's."""
    if trains:
        return "training"
    evaluates = any((Path(program).name, word) == ("emtoolkit", "evaluate") for program, word in pairwise(argv))
    return "evaluation" if evaluates else None


def carried_over(attempt: Attempt, before: Attempt) -> Attempt:
    """`attempt`, which begins after `before`, with what `before` had reached of the same training."""
    if before.inputs != attempt.inputs:
        return attempt
    stalls = before.stalls if before.state in ("interrupted", "running") else 0
    return replace(attempt, step=before.step, stalls=stalls)


def after_stop(attempt: Attempt, kind: Kind | None, *, by_time_limit: Callable[[], bool]) -> Attempt:
    """`attempt`, which a signal stopped, with the step that it reached; failed if it stalls.

    A run of no known `kind` is a training if it says after which step it stopped. `by_time_limit` is called if the run
    has not got on.
    """
    reason = attempt.error or ""
    found = _STOPPED.search(reason)
    step = None if found is None else int(found[1])
    # A training whose newest state is lost stops at an earlier step than before, and has trained.
    if (step not in (None, 0, attempt.step)) or (kind == "evaluation" and _KEPT.search(reason)):
        return replace(attempt, step=step, stalls=0)
    if kind is None and step is None and attempt.step is None:
        return attempt
    if not by_time_limit():
        return attempt
    stalls = attempt.stalls + 1
    if stalls < _MOST_STALLS:
        return replace(attempt, stalls=stalls)
    return replace(attempt, state="failed", stalls=stalls, error=_sentence(attempt, kind, stalls))


def _sentence(attempt: Attempt, kind: Kind | None, stalls: int) -> str:
    stopped, time = f"the time limit stopped the run {stalls} times in a row before it had", "(--slurm time=4:00:00)"
    if kind == "evaluation":
        return f"{stopped} a new answer; give it more time {time}"
    reached = "its first step" if attempt.step is None else f"a step after step {attempt.step}"
    return (
        f"{stopped} trained {reached}; give it more time {time}, or save its state more often "
        "(checkpointing.resume_every), and submit it with --retry-failed"
    )
