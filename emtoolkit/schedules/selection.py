"""Which of the steps that are there are meant: a schedule's grammar, and the word `final`."""

from collections.abc import Callable, Sequence

from emtoolkit.errors import CheckpointError
from emtoolkit.schedules.schedule import At, Schedule
from emtoolkit.schedules.steps import Steps

FINAL = "final"


def select_steps(spec: str, steps: Sequence[int], final: Callable[[], int]) -> tuple[int, ...]:
    """Those of `steps`, ascending and at least one, that `spec` names; `final` is asked only for that word.

    A rule takes what is there of it, and an open one stops at the last step. Nothing is taken that was not asked for.

    Raises:
        ScheduleError: `spec` cannot be read.
        CheckpointError: a step written out by hand is not there, or nothing is selected.
    """
    words = [word.strip() for word in spec.split(",")]
    terms = Schedule.parse(",".join(rules)).terms if (rules := [word for word in words if word != FINAL]) else ()
    for term in terms:
        if isinstance(term, At) and term.step not in steps:
            nearest = min(steps, key=lambda step: (abs(step - term.step), step))
            raise CheckpointError(f'steps "{spec}": there is no checkpoint at step {term}; the nearest is {nearest}')
    chosen = Steps.union(term.steps(steps[-1]) for term in terms)
    last = {final()} if FINAL in words else set()
    selected = tuple(step for step in steps if step in chosen or step in last)
    if not selected:
        raise CheckpointError(f'steps "{spec}": none of them is there; there are {", ".join(map(str, _some(steps)))}')
    return selected


def _some(steps: Sequence[int]) -> Sequence[int | str]:
    return steps if len(steps) <= 8 else [*steps[:4], "…", *steps[-2:]]
