"""When to save: a schedule is a set of training steps, written as comma-separated terms, as a frozen value.

| term             | steps                                                                              |
|------------------|------------------------------------------------------------------------------------|
| `40`             | that step                                                                          |
| `every:25`       | 25, 50, ... without 0, as `save_steps: 25` in Hugging Face                         |
| `every:5%`       | every ceil(0.05 x total) steps, as a float `save_steps` in Hugging Face            |
| `0-150:25`       | 0, 25, ..., 150; the stop is included if the stride lands on it, as in Slurm       |
| `300-:100`       | 300, 400, ... to the end of training                                               |
| `log2:512`       | 1, 2, 4, ..., 512                                                                  |
| `geom:1-1000/10` | 10 log-spaced steps from 1 to 1000, rounded, without repeats                       |
| `dense-early`    | a preset: a shipped file in `configs/schedules/`                                   |
| `moved:5%`       | chosen during training: whenever the weights have moved by that share              |
| `budget:20`      | chosen during training: at most 20, evenly spaced along the path of the weights    |

The last step of training is always saved, whatever the terms say. The steps of the last two rows are known only after
training (`emtoolkit.schedules.adaptive`): `Schedule.steps` refuses them.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from emtoolkit.errors import ScheduleError
from emtoolkit.number_checks import is_whole
from emtoolkit.schedules.adaptive import AdaptiveTerm, Budget, Moved
from emtoolkit.schedules.grammar import parse_terms
from emtoolkit.schedules.presets import shipped_presets
from emtoolkit.schedules.steps import Steps
from emtoolkit.schedules.terms import (
    MAX_STEP,
    At,
    Between,
    Every,
    EveryFraction,
    From,
    Preset,
    SimpleTerm,
    Term,
    bad_term,
    unreachable_steps,
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps to save: the union of the terms and, once the length of the run is known, its last step.

    `str(schedule)` is the grammar again, and `Schedule.parse(str(schedule)) == schedule`. Two schedules are equal if
    they have the same terms in the same order; compare `steps(total_steps)` to compare the steps they save.
    """

    terms: tuple[Term | AdaptiveTerm, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ScheduleError('schedule "": expected at least one term, such as every:25 or dense-early')
        adaptive = [term for term in self.terms if isinstance(term, Moved | Budget)]
        budget = next((term for term in adaptive if isinstance(term, Budget)), None)
        if budget is not None and len(self.terms) > 1:
            others = ",".join(str(term) for term in self.terms if term is not budget)
            raise ScheduleError(
                f'schedule "{self}": {budget} bounds all checkpoints of the run, so it stands alone; remove "{others}"'
            )
        if len(adaptive) > 1:
            smallest = min((term for term in adaptive if isinstance(term, Moved)), key=lambda term: term.fraction)
            raise ScheduleError(f'schedule "{self}": two shares; keep "{smallest}"')

    @classmethod
    def parse(
        cls, text: str, presets: Callable[[], Mapping[str, str]] = shipped_presets, selectors: Sequence[str] = ()
    ) -> "Schedule":
        """The schedule that `text` writes in the grammar; `presets` is called only for a term of no other form.

        `selectors` are further words that the caller takes, for messages: see `parse_terms`.

        Raises:
            ScheduleError: a term cannot be read; the message quotes the term and what was expected.
        """
        return cls(parse_terms(text, presets, selectors))

    @classmethod
    def of(cls, steps: Iterable[int]) -> "Schedule":
        """The schedule of exactly these steps, in ascending order without repeats.

        Raises:
            ScheduleError: a step is not a whole number from 0 on, or there is none.
        """
        return cls(tuple(At(step) for step in sorted({_whole(step) for step in steps})))

    @classmethod
    def of_argument(cls, value: "str | Schedule | Iterable[int]") -> "Schedule":
        """The schedule that a function of the public interface got: a text in the grammar, a value, or the steps.

        Raises:
            ScheduleError: `value` is neither, or its text cannot be read.
        """
        if isinstance(value, Schedule):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        if is_whole(value):
            raise bad_term(value, f'is a number; write "every:{value}" for an interval, or [{value}] for that step')
        if not isinstance(value, bytes):  # whose items are numbers, too
            with suppress(TypeError):  # no list, or an array without a dimension
                return cls.of(iter(value))
        raise bad_term(value, 'expected a text such as "dense-early", a Schedule, or a list of steps')

    def __or__(self, other: "Schedule") -> "Schedule":
        """The union of two schedules; a term of both is kept once."""
        return Schedule(tuple(dict.fromkeys(self.terms + other.terms)))

    def __str__(self) -> str:
        return ",".join(map(str, self.terms))

    @property
    def adaptive(self) -> AdaptiveTerm | None:
        """The term whose steps are chosen during training, if there is one."""
        return next((term for term in self.terms if isinstance(term, Moved | Budget)), None)

    def __contains__(self, step: int) -> bool:
        """Whether a term names `step` in a run of any length; the last step of a run is not counted.

        Raises:
            ScheduleError: the answer depends on the run: no other term names `step`, and one term is a fraction or is
                chosen during training.
        """
        step = operator.index(step)
        if self.adaptive is not None and step == 0:
            return True
        terms = tuple(self._simple_terms())
        if any(step in term.steps(step) for term in terms if not isinstance(term, EveryFraction)):
            return True
        for term in terms:
            if isinstance(term, EveryFraction):
                raise bad_term(term, "depends on the length of the run; ask steps(total_steps) instead")
        self.check_known()
        return False

    def steps(self, total_steps: int) -> Steps:
        """The steps to save in a run of `total_steps` (at least 1), always including the last.

        Raises:
            ScheduleError: no run has `total_steps` steps, or a term chooses its steps during training.
        """
        self.check_known()
        return self.known_steps(total_steps)

    def known_steps(self, total_steps: int) -> Steps:
        """The steps that are saved whatever the weights do: all, or with an adaptive term the others, the first and the
        last.

        Raises:
            ScheduleError: no run has `total_steps` steps.
        """
        if not 1 <= total_steps <= MAX_STEP:
            raise ScheduleError(f"a run has 1 to {MAX_STEP} steps, not {total_steps}")
        first = () if self.adaptive is None else (0,)
        return Steps.union([*(term.steps(total_steps) for term in self._simple_terms()), first, (total_steps,)])

    def unreachable(self, total_steps: int) -> Steps:
        """The steps written out by hand that a run of `total_steps` never reaches.

        Written out by hand are `40`, `0-150:25`, `log2:512`, `geom:1-1000/10` and the start of `300-:100`. Open rules
        and presets stop at the end of training.
        """
        return Steps.union(unreachable_steps(term, total_steps) for term in self.fixed_terms)

    def check_reachable(self, total_steps: int, *, allow_unreachable: bool = False) -> str | None:
        """Check that a run of `total_steps` reaches every step written out by hand; None if it does.

        With `allow_unreachable` the return value is the sentence of a warning, which names the first such step.

        Raises:
            ScheduleError: the run does not reach a step, and `allow_unreachable` is false.
        """
        steps = self.unreachable(total_steps)
        if not steps:
            return None
        which = f"step {steps[0]} is" if len(steps) == 1 else f"step {steps[0]} and {len(steps) - 1} more are"
        sentence = f'schedule "{self}": {which} past the end of training at step {total_steps}'
        if allow_unreachable:
            return sentence
        term = next(term for term in self.fixed_terms if steps[0] in unreachable_steps(term, total_steps))
        raise ScheduleError(
            f"{sentence}; an open rule such as {_open_rule(term, total_steps)} stops there by itself, "
            "and allow_unreachable turns this error into a warning"
        )

    def check_known(self) -> None:
        """Check that the terms alone say which steps are saved.

        Raises:
            ScheduleError: a term chooses its steps during training.
        """
        if self.adaptive is not None:
            raise ScheduleError(
                f'schedule "{self}": {self.adaptive} chooses its steps during training, so they are not known '
                "beforehand; name steps, such as every:25 or dense-early"
            )

    @property
    def fixed_terms(self) -> tuple[Term, ...]:
        """The terms whose steps are known beforehand."""
        return tuple(term for term in self.terms if not isinstance(term, Moved | Budget))

    def _simple_terms(self) -> Iterator[SimpleTerm]:
        for term in self.fixed_terms:
            if isinstance(term, Preset):
                yield from term.terms
            else:
                yield term


def _whole(step: int) -> int:
    if not isinstance(step, bool):
        with suppress(TypeError):
            return operator.index(step)
    as_text = '; write all terms as one text, such as "0,every:25"' if isinstance(step, str) else ""
    raise bad_term(step, f"the step must be a whole number{as_text}")


def _open_rule(term: Term, total_steps: int) -> Term:
    """The open rule closest to `term`, which asks for steps past the end of training."""
    if isinstance(term, Between) and term.start <= total_steps:
        return From(term.start, term.stride)
    return Every(term.stride if isinstance(term, Between | From) else 25)
