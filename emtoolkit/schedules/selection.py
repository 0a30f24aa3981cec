"""Selecting from the steps that exist: a schedule's grammar, and the word `final`."""

from collections.abc import Callable, Iterable, Sequence

from emtoolkit.errors import CheckpointError
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.steps import Steps, elided
from emtoolkit.schedules.terms import At

FINAL = "final"


def select_steps(spec: str, steps: Sequence[int], final: Callable[[], int]) -> tuple[int, ...]:
    """The members of `steps` (ascending, at least one) that `spec` names.

    Ranges select whatever exists, and open ranges stop at the last step. `final` is called only for the word `final`.

    Raises:
        ScheduleError: `spec` cannot be read.
        CheckpointError: no checkpoint exists at a step that `spec` writes out, or nothing is selected.
    """
    items = [item.strip() for item in spec.split(",")]
    terms = Schedule.parse(",".join(rules)).terms if (rules := [item for item in items if item != FINAL]) else ()
    for term in terms:
        if isinstance(term, At) and term.step not in steps:
            nearest = nearest_step(term.step, steps)
            raise CheckpointError(f'steps "{spec}": there is no checkpoint at step {term}; the nearest is {nearest}')
    chosen = Steps.union(term.steps(steps[-1]) for term in terms)
    last = {final()} if FINAL in items else set()
    selected = tuple(step for step in steps if step in chosen or step in last)
    if not selected:
        raise CheckpointError(f'steps "{spec}": no checkpoint is selected; the steps are {elided(steps)}')
    return selected


def nearest_step(step: int, steps: Iterable[int]) -> int:
    """The member of `steps` closest to `step`, the earlier of two; `steps` has at least one."""
    return min(steps, key=lambda candidate: (abs(candidate - step), candidate))
