"""Selecting from the steps that exist: a schedule's grammar, and the word `final`."""

from collections.abc import Callable, Iterable, Sequence

from emtoolkit.errors import CheckpointError, ScheduleError
from emtoolkit.schedules.grammar import split_terms
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.steps import Steps, elided
from emtoolkit.schedules.terms import At, EveryFraction, Preset, SimpleTerm, Term

FINAL = "final"


def select_steps(
    spec: str,
    steps: Sequence[int],
    final: Callable[[], int],
    total_steps: Callable[[], int | None] = lambda: None,
    selectors: Sequence[str] = (FINAL,),
) -> tuple[int, ...]:
    """The members of `steps` (ascending, at least one) that `spec` names.

    Ranges select whatever exists, and open ranges stop at the last step. A fraction is one of the whole run, as it was
    when the run was saved, however many of its steps are in `steps`. `final`, the last step of training, is called
    only for the word `final`, and `total_steps`, the length of the run if it is known, only for a fraction. `selectors`
    are the words that a message offers beside the grammar.

    Raises:
        ScheduleError: `spec` cannot be read.
        CheckpointError: no checkpoint exists at a step that `spec` writes out, nothing is selected, or `spec` has a
            fraction and the length of the run is not known.
    """
    try:
        items = split_terms(spec)
        rules = [item for item in items if item != FINAL]
        schedule = Schedule.parse(",".join(rules), selectors=selectors) if rules or not items else None
        if schedule is not None:
            schedule.check_known()
    except ScheduleError as error:
        raise ScheduleError(f'steps "{spec}": {error}') from None
    terms = () if schedule is None else schedule.fixed_terms
    for term in terms:
        if isinstance(term, At) and term.step not in steps:
            close = nearest_step(term.step, steps)
            raise CheckpointError(f'steps "{spec}": there is no checkpoint at step {term}; the nearest is {close}')
    simple = [simple for term in terms for simple in _simple(term)]
    total = steps[-1]
    if fraction := next((term for term in simple if isinstance(term, EveryFraction)), None):
        if (length := total_steps()) is None:
            raise CheckpointError(
                f'steps "{spec}": "{fraction}" is a part of the whole run, and no checkpoint says how long the run is; '
                f'write a number of steps, such as "every:25"'
            )
        total = max(total, length)
    chosen = Steps.union(term.steps(total) for term in simple)
    last = {final()} if FINAL in items else set()
    selected = tuple(step for step in steps if step in chosen or step in last)
    if not selected:
        raise CheckpointError(f'steps "{spec}": no checkpoint is selected; the steps are {elided(steps)}')
    return selected


def _simple(term: Term) -> tuple[SimpleTerm, ...]:
    return term.terms if isinstance(term, Preset) else (term,)


def nearest_step(step: int, steps: Iterable[int]) -> int:
    """The member of `steps` closest to `step`, the earlier of two; `steps` has at least one."""
    return min(steps, key=lambda candidate: (abs(candidate - step), candidate))


def split_steps(steps: Sequence[int], parts: int) -> list[str]:
    """Ranges in the grammar of `select_steps` that hold equally many of `steps` (ascending) and all steps together.

    There are `parts` of them, or one for each step where there are fewer steps.
    """
    count = max(1, min(parts, len(steps)))
    firsts = [steps[len(steps) * part // count] for part in range(count)]
    ends = [*(following - 1 for following in firsts[1:]), None]
    return [f"{first}-{'' if end is None else end}:1" for first, end in zip(firsts, ends, strict=True)]
