"""Which checkpoints stay: a schedule, `final`, `best:METRIC`, and a budget. Pure values, no files.

Step 0 and the last step stay unless they are named in what to drop: a rise is measured from step 0, and the last step
is the result of the training.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from emtoolkit.checkpoints.metric_values import Metrics, best_step
from emtoolkit.errors import CheckpointError, ScheduleError, UserError, located
from emtoolkit.schedules.grammar import split_terms
from emtoolkit.schedules.selection import FINAL, select_steps

FEWEST = 2
_BEST = re.compile(r"(best|lowest):(.+)")
_BUDGET = re.compile(r"budget:(\d+)")
_PREFIXES = ("best:METRIC", "lowest:METRIC")


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of a trajectory: those with a complete checkpoint, ascending, and those that were pruned.

    `final` is the step at which training ended, None if it has not ended. `total` is the length of the whole run, None
    where it is not known. `asked` are steps that somebody asked a training to save.
    """

    complete: tuple[int, ...]
    pruned: tuple[int, ...] = ()
    final: int | None = None
    total: int | None = None
    asked: frozenset[int] = frozenset()

    @property
    def last(self) -> int:
        """The final step, or the last one that is there."""
        return self.complete[-1] if self.final is None else self.final


def named_steps(option: str, text: str, steps: Steps, metrics: Callable[[], Metrics]) -> dict[int, str]:
    """The steps that `text` names, each with the part of `text` that names it first; `option` is for messages.

    `text` is a schedule, the word `final`, `best:METRIC` or `lowest:METRIC`, or several of them with commas. Ranges
    select whatever exists.

    Raises:
        ScheduleError: `text` cannot be read.
        CheckpointError: a step written out by hand has no checkpoint, nothing is selected, or a metric does not decide.
    """
    named: dict[int, str] = {}
    schedule = []
    with located(f'{option} "{text}"'):
        items = split_terms(text)
    for item in items:
        if match := _BEST.fullmatch(item):
            step = best_step(metrics(), match[2], steps.complete, steps.pruned, lowest=match[1] == "lowest")
            named.setdefault(step, item)
        elif match := _BUDGET.fullmatch(item):
            raise ScheduleError(f'{option} "{text}": a budget is an option of its own; give --budget {match[1]}')
        elif item.isdecimal() and int(item) in steps.pruned and int(item) not in steps.complete:
            raise CheckpointError(
                f'{option} "{text}": step {item} was pruned already; leave it out, or make it again with \'emtoolkit '
                "refine' first"
            )
        elif item.partition(":")[0] in ("best", "lowest"):
            raise ScheduleError(f'{option} "{text}": "{item}": expected a metric, such as {" or ".join(_PREFIXES)}')
        else:
            schedule.append(item)
    if schedule or not items:
        rest = ",".join(schedule)
        total, selectors = steps.total, (FINAL, *_PREFIXES)
        try:
            selected = select_steps(rest, steps.complete, lambda: steps.last, lambda: total, selectors)
        except (ScheduleError, CheckpointError) as error:
            raise type(error)(f"{option} {str(error).removeprefix('steps ')}") from None
        named |= {step: rest for step in selected if step not in named}
    return named


def thinned(steps: Sequence[int], places: Sequence[float], budget: int, stay: Collection[int]) -> tuple[int, ...]:
    """`budget` of `steps`, evenly spaced along `places`, the ascending place of each; the ends and `stay` are included.

    The sum of the squares of all gaps is the smallest that is possible, which it is for equal gaps. What has to stay
    may be more than `budget`.

    Raises:
        UserError: `budget` is below 2.
    """
    check_budget(budget)
    if len(steps) <= budget:
        return tuple(steps)
    last = len(steps) - 1
    fixed = sorted({0, last} | {index for index, step in enumerate(steps) if step in stay})
    if len(fixed) >= budget:
        return tuple(steps[index] for index in fixed)
    at = np.asarray(places, dtype=np.float64)
    # The last fixed point before each point: no gap may leave one out.
    floor = [fixed[bisect_left(fixed, index) - 1] if index else 0 for index in range(last + 1)]
    cost = np.full(last + 1, np.inf)
    cost[0] = 0.0
    choices = []
    for _ in range(budget - 1):
        after, chosen = np.full(last + 1, np.inf), np.zeros(last + 1, dtype=np.int64)
        for index in range(1, last + 1):
            first = floor[index]
            ways = cost[first:index] + (at[index] - at[first:index]) ** 2
            best = int(np.argmin(ways))
            after[index], chosen[index] = ways[best], first + best
        choices.append(chosen)
        cost = after
    index, found = last, [last]
    for chosen in reversed(choices):
        index = int(chosen[index])
        found.append(index)
    return tuple(steps[index] for index in reversed(found))


def check_budget(budget: int) -> None:
    """Check that the first and the last step fit.

    Raises:
        UserError: they do not.
    """
    if budget < FEWEST:
        raise UserError(f"--budget {budget}: the first and the last step stay; give a number of at least {FEWEST}")


@dataclass(frozen=True, slots=True)
class Request:
    """The request to `emtoolkit prune`.

    `places` gives the place of each step on the path along which a budget is spent evenly.
    """

    keep: str | None = None
    drop: str | None = None
    budget: int | None = None
    places: Callable[[Sequence[int]], Sequence[float]] = lambda steps: [float(step) for step in steps]

    def __post_init__(self) -> None:
        if self.keep is None and self.budget is None and self.drop is None:
            raise UserError(
                'prune: nothing says what stays; give --keep, such as --keep "dense-early,final", or --budget'
            )
        if self.budget is not None:
            check_budget(self.budget)


def kept_steps(
    request: Request, steps: Steps, protected: Mapping[int, str], metrics: Callable[[], Metrics]
) -> dict[int, str]:
    """The steps that stay, each with the reason; `protected` stay whatever is asked for.

    Raises:
        UserError: the request cannot be read, names steps that are not there, or would leave nothing.
    """
    dropped = {} if request.drop is None else named_steps("--drop", request.drop, steps, metrics)
    kept = {step: reason for step, reason in protected.items() if step in steps.complete}
    if request.keep is not None:
        for step, item in named_steps("--keep", request.keep, steps, metrics).items():
            kept.setdefault(step, item)
    unless_named = dict.fromkeys(sorted(steps.asked), "somebody asked for it with 'emtoolkit save'")
    unless_named |= {0: "step 0", steps.last: _name_of_last(steps)}
    kept = {step: reason for step, reason in kept.items() if step not in dropped or step in protected}
    for step, reason in unless_named.items():
        if step in steps.complete and step not in dropped:
            kept.setdefault(step, reason)
    if request.keep is None and request.budget is None:
        for step in steps.complete:
            if step not in dropped:
                kept.setdefault(step, "not named in --drop")
    if request.budget is not None and len(kept) < request.budget:
        candidates = [step for step in steps.complete if step not in dropped or step in kept]
        for step in thinned(candidates, request.places(candidates), request.budget, kept.keys()):
            kept.setdefault(step, f"budget {request.budget}")
    if not kept:
        raise CheckpointError(
            f"prune: nothing would be left of {len(steps.complete)} checkpoints; name at least one step in --keep"
        )
    return dict(sorted(kept.items()))


def budget_notes(request: Request, kept: Mapping[int, str]) -> list[str]:
    """A sentence if more steps stay than the budget admits."""
    if request.budget is None or len(kept) <= request.budget:
        return []
    return [f"--budget {request.budget}: {len(kept)} checkpoints stay, because each of them has another reason to stay"]


def _name_of_last(steps: Steps) -> str:
    return "the last step so far" if steps.final is None else "final"
