"""When to save: a schedule is a set of training steps, written as comma-separated terms, as a frozen value.

| term             | steps                                                                              |
|------------------|------------------------------------------------------------------------------------|
| `40`             | that step                                                                          |
| `every:25`       | 25, 50, ... without 0, as `save_steps: 25` in Hugging Face                         |
| `every:5%`       | every ceil(0.05 x total) steps, as a float `save_steps` in Hugging Face            |
| `0-150:25`       | 0, 25, ..., 150; the stop is included when the stride lands on it, as in Slurm     |
| `300-:100`       | 300, 400, ... to the end of training                                               |
| `log2:512`       | 1, 2, 4, ..., 512                                                                  |
| `geom:1-1000/10` | 10 log-spaced steps from 1 to 1000, rounded; steps that round alike are saved once |
| `dense-early`    | a preset: a shipped file in `configs/schedules/`                                   |

The last step of training is always saved, whatever the terms say.
"""

import math
import operator
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from emtoolkit.errors import ScheduleError, nearest
from emtoolkit.paths import shipped
from emtoolkit.schedules.steps import Steps

# No run is this long. The bound keeps every length a machine integer and every geometric step an exact float.
MAX_STEP = 10**12

_TermSteps: TypeAlias = range | tuple[int, ...]


def _bad(term: object, problem: str) -> ScheduleError:
    return ScheduleError(f'schedule term "{term}": {problem}')


def _check(term: object, name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _bad(term, f"the {name} must be a whole number")
    if value < least:
        raise _bad(term, f"the {name} must be at least {least}")
    if value > MAX_STEP:
        raise _bad(term, f"the {name} must be at most {MAX_STEP}")


def _up_to(total_steps: int, steps: tuple[int, ...]) -> tuple[int, ...]:
    return steps[: bisect_right(steps, total_steps)]


@dataclass(frozen=True, slots=True)
class At:
    """One step."""

    step: int

    def __post_init__(self) -> None:
        _check(self, "step", self.step, least=0)

    def __str__(self) -> str:
        return str(self.step)

    def steps(self, total_steps: int) -> tuple[int, ...]:
        return _up_to(total_steps, (self.step,))


@dataclass(frozen=True, slots=True)
class Every:
    """Every `stride` steps, as an integer `save_steps` in Hugging Face: 25, 50, ... for 25, never 0."""

    stride: int

    def __post_init__(self) -> None:
        _check(self, "stride", self.stride, least=1)

    def __str__(self) -> str:
        return f"every:{self.stride}"

    def steps(self, total_steps: int) -> range:
        return range(self.stride, total_steps + 1, self.stride)


@dataclass(frozen=True, slots=True)
class EveryFraction:
    """Every `ceil(total_steps * fraction)` steps, as a float `save_steps` in Hugging Face.

    The product is a float product, because `transformers.TrainerState.compute_steps` computes it so: 0.07 of
    100 steps is 7.000000000000001, hence every 8.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not isinstance(self.fraction, float):
            raise _bad(f"every:{self.fraction}", "the fraction must be a float such as 0.05")
        if not 0 < self.fraction < 1:
            raise _bad(self, "the fraction must be more than 0% and less than 100%, such as every:5%")

    def __str__(self) -> str:
        # repr() is the shortest text that reads back as the same double; the shift by two digits is exact.
        return f"every:{Decimal(repr(float(self.fraction))).scaleb(2):f}%"

    def steps(self, total_steps: int) -> range:
        stride = max(1, math.ceil(total_steps * self.fraction))
        return range(stride, total_steps + 1, stride)


@dataclass(frozen=True, slots=True)
class Between:
    """Every `stride` steps from `start` to `stop`; `stop` itself when the stride lands on it."""

    start: int
    stop: int
    stride: int

    def __post_init__(self) -> None:
        _check(self, "start", self.start, least=0)
        _check(self, "stop", self.stop, least=0)
        _check(self, "stride", self.stride, least=1)
        if self.stop < self.start:
            swapped = Between(self.stop, self.start, self.stride)
            raise _bad(self, f'the stop must not be before the start; did you mean "{swapped}"?')

    def __str__(self) -> str:
        return f"{self.start}-{self.stop}:{self.stride}"

    def steps(self, total_steps: int) -> range:
        return range(self.start, min(self.stop, total_steps) + 1, self.stride)


@dataclass(frozen=True, slots=True)
class From:
    """Every `stride` steps from `start` to the end of training."""

    start: int
    stride: int

    def __post_init__(self) -> None:
        _check(self, "start", self.start, least=0)
        _check(self, "stride", self.stride, least=1)

    def __str__(self) -> str:
        return f"{self.start}-:{self.stride}"

    def steps(self, total_steps: int) -> range:
        return range(self.start, total_steps + 1, self.stride)


@dataclass(frozen=True, slots=True)
class Log2:
    """The powers of two from 1 up to `limit`."""

    limit: int

    def __post_init__(self) -> None:
        _check(self, "limit", self.limit, least=1)

    def __str__(self) -> str:
        return f"log2:{self.limit}"

    def steps(self, total_steps: int) -> tuple[int, ...]:
        return _up_to(total_steps, tuple(2**power for power in range(self.limit.bit_length())))


@dataclass(frozen=True, slots=True)
class Geom:
    """`count` log-spaced steps from `start` to `stop`, both ends exact; steps that round alike count once."""

    start: int
    stop: int
    count: int

    def __post_init__(self) -> None:
        _check(self, "start", self.start, least=1)
        _check(self, "stop", self.stop, least=1)
        _check(self, "count", self.count, least=2)
        if self.stop <= self.start:
            raise _bad(self, f"the stop must be after the start, {self.start}")
        if self.count > (room := self.stop - self.start + 1):
            nearest_term = Geom(self.start, self.stop, room)
            raise _bad(self, f'there are only {room} steps to choose from; did you mean "{nearest_term}"?')

    def __str__(self) -> str:
        return f"geom:{self.start}-{self.stop}/{self.count}"

    def steps(self, total_steps: int) -> tuple[int, ...]:
        ratio, last = self.stop / self.start, self.count - 1
        inner = {round(self.start * ratio ** (i / last)) for i in range(1, last)}
        return _up_to(total_steps, tuple(sorted({self.start, *inner, self.stop})))


@dataclass(frozen=True, slots=True)
class Preset:
    """A named schedule; stops at the end of training like an open rule, however long it is written."""

    name: str
    schedule: "Schedule"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", self.name) or self.name in _EXPECTED_AFTER:
            raise _bad(self, "a preset's name is letters, digits, dots and dashes, and no word of the grammar")
        for term in self.schedule.terms:
            if isinstance(term, Preset):
                raise _bad(self, f'a preset must not name another preset, here "{term}"')

    def __str__(self) -> str:
        return self.name

    def steps(self, total_steps: int) -> Steps:
        return Steps.union(term.steps(total_steps) for term in self.schedule.terms)


Term: TypeAlias = At | Every | EveryFraction | Between | From | Log2 | Geom | Preset


def shipped_presets() -> dict[str, str]:
    """The text of every preset in `configs/schedules/`, by name."""
    import yaml  # here because it is slow to import and most schedules name no preset

    presets = {}
    for path in sorted(shipped("schedules").glob("*.yaml")):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ScheduleError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict) or not isinstance(content.get("schedule"), str):
            raise ScheduleError(f"{path}: expected the keys description and schedule, both text")
        presets[path.stem] = content["schedule"]
    return presets


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps to save: the union of its terms and, once the run's length is known, its last step.

    `str(schedule)` is the grammar again, and `Schedule.parse(str(schedule)) == schedule`. Two schedules are
    equal when they have the same terms in the same order; compare `steps(total_steps)` to compare what they
    save.
    """

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ScheduleError('schedule "": expected at least one term, such as every:25 or dense-early')

    @classmethod
    def parse(cls, text: str, presets: Callable[[], Mapping[str, str]] = shipped_presets) -> "Schedule":
        """The schedule that `text` writes down; `presets` is called only for a term of no other form.

        Raises `ScheduleError`: one sentence that quotes the term and says what was expected.
        """
        words = [word.strip() for word in text.split(",")]
        filled = [word for word in words if word]
        if len(filled) < len(words) and filled:
            hint = f'did you mean "{",".join(filled)}"?'
            raise ScheduleError(f'schedule "{text}": there is an empty term beside a comma; {hint}')
        return cls(tuple(_parse_term(word, presets) for word in filled))

    @classmethod
    def of(cls, steps: Iterable[int]) -> "Schedule":
        """The schedule of exactly these steps, in order and once each."""
        return cls(tuple(At(step) for step in sorted({_plain(step) for step in steps})))

    def __or__(self, other: "Schedule") -> "Schedule":
        """Everything that either saves; a term of both is kept once."""
        return Schedule(tuple(dict.fromkeys(self.terms + other.terms)))

    def __str__(self) -> str:
        return ",".join(map(str, self.terms))

    def __contains__(self, step: int) -> bool:
        """Whether a term names `step` whatever the length of the run, hence not whether it is the last step.

        Raises `ScheduleError` when that depends on the length: no other term names it and one is a fraction.
        """
        step = operator.index(step)
        terms = tuple(self._simple_terms())
        if any(step in term.steps(step) for term in terms if not isinstance(term, EveryFraction)):
            return True
        for term in terms:
            if isinstance(term, EveryFraction):
                raise _bad(term, "depends on the length of the run; ask steps(total_steps) instead")
        return False

    def steps(self, total_steps: int) -> Steps:
        """The steps saved in a run of `total_steps` (at least 1), the last one always among them."""
        _check_total(total_steps)
        return Steps.union([*(term.steps(total_steps) for term in self._simple_terms()), (total_steps,)])

    def unreachable(self, total_steps: int) -> Steps:
        """The steps written out by hand that a run of `total_steps` never reaches.

        By hand are `40`, `0-150:25`, `log2:512`, `geom:1-1000/10` and the start of `300-:100`. Rules without
        an end and presets stop with the training.
        """
        return Steps.union(_unreachable(term, total_steps) for term in self.terms)

    def unreachable_sentence(self, total_steps: int) -> str | None:
        """What `unreachable` found, as words for a warning that name the first of the steps, or None."""
        steps = self.unreachable(total_steps)
        if not steps:
            return None
        count = len(steps)
        which = f"step {steps[0]} is" if count == 1 else f"step {steps[0]} and {count - 1} more are"
        return f'schedule "{self}": {which} past the end of training at step {total_steps}'

    def check_reachable(self, total_steps: int) -> None:
        """Raises `ScheduleError` if the schedule asks by hand for a step past the end of training."""
        sentence = self.unreachable_sentence(total_steps)
        if sentence is None:
            return
        step = self.unreachable(total_steps)[0]
        term = next(term for term in self.terms if step in _unreachable(term, total_steps))
        rule: Term = Every(term.stride if isinstance(term, Between | From) else 25)
        if isinstance(term, Between) and term.start <= total_steps:
            rule = From(term.start, term.stride)
        raise ScheduleError(
            f"{sentence}; an open rule such as {rule} stops there by itself, "
            "and allow_unreachable turns this error into a warning"
        )

    def _simple_terms(self) -> Iterator["Term"]:
        for term in self.terms:
            if isinstance(term, Preset):
                yield from term.schedule.terms
            else:
                yield term


def _plain(step: int) -> int:
    try:
        return operator.index(step)
    except TypeError:
        raise _bad(step, "the step must be a whole number") from None


def _check_total(total_steps: int) -> None:
    if not 1 <= total_steps <= MAX_STEP:
        raise ScheduleError(f"a run has 1 to {MAX_STEP} steps, not {total_steps}")


def _unreachable(term: Term, total_steps: int) -> _TermSteps:
    match term:
        case At() | Between() | Log2() | Geom():
            steps = term.steps(MAX_STEP)
            return steps[bisect_right(steps, total_steps) :]
        case From(start=start) if start > total_steps:
            return (start,)
        case _:
            return ()


# At most 1000 digits, because int() refuses 4300 with an error of its own.
_N = "([0-9]{1,1000})"
_FORMS: tuple[tuple[re.Pattern[str], Callable[..., Term]], ...] = (
    (re.compile(_N), At),
    (re.compile(f"every:{_N}"), Every),
    (re.compile(f"{_N}-{_N}:{_N}"), Between),
    (re.compile(f"{_N}-:{_N}"), From),
    (re.compile(f"log2:{_N}"), Log2),
    (re.compile(f"geom:{_N}-{_N}/{_N}"), Geom),
)
_PERCENT = re.compile(r"every:([0-9]+(?:\.[0-9]+)?)%")
_FRACTION = re.compile(r"every:(0?\.[0-9]+)")
_RANGE_WITHOUT_STRIDE = re.compile("[0-9]+-[0-9]*")
_EXPECTED_AFTER = {
    "every": "every:STRIDE such as every:25, or every:PERCENT% such as every:5%",
    "log2": "log2:LIMIT such as log2:512",
    "geom": "geom:START-STOP/COUNT such as geom:1-1000/10",
}


def _parse_term(word: str, presets: Callable[[], Mapping[str, str]]) -> Term:
    for pattern, form in _FORMS:
        if match := pattern.fullmatch(word):
            return form(*map(int, match.groups()))
    if match := _PERCENT.fullmatch(word):
        # The nearest double to p/100, which p divided by 100 as a double is not always.
        return EveryFraction(float(f"{match[1]}e-2"))
    if _RANGE_WITHOUT_STRIDE.fullmatch(word):
        raise _bad(word, f'expected a stride after the range; did you mean "{word}:1"?')
    keyword = word.partition(":")[0]
    if expected := _EXPECTED_AFTER.get(keyword):
        hint = ""
        if (match := _FRACTION.fullmatch(word)) and (fraction := float(match[1])) > 0:
            hint = f'; did you mean "{EveryFraction(fraction)}"?'
        raise _bad(word, f"expected {expected}{hint}")
    known = presets()
    if word in known:
        return Preset(word, _parse_preset(word, known))
    preset = f" or a preset ({', '.join(known)})" if known else ""
    raise _bad(
        word,
        "expected a step such as 40, a range such as 0-150:25 or 300-:100, every:25, every:5%, log2:512, "
        f"geom:1-1000/10{preset}{nearest(keyword, [*_EXPECTED_AFTER, *known])}",
    )


def _parse_preset(name: str, known: Mapping[str, str]) -> Schedule:
    text = known[name]
    for word in map(str.strip, text.split(",")):
        if word in known:
            raise ScheduleError(f'preset "{name}": expected a schedule without presets, but it names "{word}"')
    try:
        return Schedule.parse(text, presets=dict)
    except ScheduleError as error:
        raise ScheduleError(f'preset "{name}": {error}') from error
