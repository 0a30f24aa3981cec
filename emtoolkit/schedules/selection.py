"""Selecting from the steps that exist: a schedule's grammar, and the word `final`."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

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


def split_steps(steps: Sequence[int], parts: int, all_steps: Sequence[int] | None = None) -> list[str]:
    """Ranges in the grammar of `select_steps` that hold equally many of `steps` (ascending) and all steps together.

    There are `parts` of them, or one for each step where there are fewer steps. `all_steps`, by default `steps`, are
    those that exist: the ranges select no other of them than `steps`.
    """
    if all_steps is not None and tuple(steps) != tuple(all_steps[-len(steps) :]):
        return [spec_of(part, all_steps) for part in equal_parts(steps, parts)]
    firsts = [part[0] for part in equal_parts(steps, parts)]
    ends = [*(following - 1 for following in firsts[1:]), None]
    return [f"{first}-{'' if end is None else end}:1" for first, end in zip(firsts, ends, strict=True)]


def equal_parts(steps: Sequence[int], parts: int) -> list[tuple[int, ...]]:
    """`steps`, at least one, in `parts` parts of equally many, or in one for each step where there are fewer steps."""
    count = max(1, min(parts, len(steps)))
    ends = [len(steps) * part // count for part in range(count + 1)]
    return [tuple(steps[begin:end]) for begin, end in pairwise(ends)]


def spec_of(chosen: Sequence[int], steps: Sequence[int]) -> str:
    """A text that selects exactly `chosen` (ascending, at least one) from `steps`: `0,25-100:1`."""
    place = {step: at for at, step in enumerate(steps)}
    ranges: list[list[int]] = []
    for step in chosen:
        if ranges and place[step] == place[ranges[-1][-1]] + 1:
            ranges[-1][1:] = [step]
        else:
            ranges.append([step])
    return ",".join(str(first) if not last else f"{first}-{last[0]}:1" for first, *last in ranges)


def named_by(spec: str, steps: Iterable[int]) -> tuple[int, ...]:
    """Those of `steps` that a text of `spec_of` names, which may name steps that are no longer there."""
    ends = [[int(step) for step in item.removesuffix(":1").split("-")] for item in spec.split(",")]
    return tuple(step for step in steps if any(first[0] <= step <= first[-1] for first in ends))
