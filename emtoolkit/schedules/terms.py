"""The terms of a schedule: frozen values, each a rule that gives ascending steps for a run of known length."""

import math
import re
from bisect import bisect_right
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from emtoolkit.errors import ScheduleError
from emtoolkit.schedules.steps import Steps

# No run is this long. The bound keeps every length a machine integer and every geometric step an exact float.
MAX_STEP = 10**12
KEYWORDS = ("every", "log2", "geom", "moved", "budget")


def bad_term(term: object, problem: str) -> ScheduleError:
    """The error about `term`, a value or its text."""
    return ScheduleError(f'schedule term "{term}": {problem}')


def check_whole(term: object, name: str, value: int, least: int) -> None:
    """Check the number `value`, which is the `name` of `term`.

    Raises:
        ScheduleError: it is no whole number from `least` to `MAX_STEP`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad_term(term, f"the {name} must be a whole number")
    if value < least:
        raise bad_term(term, f"the {name} must be at least {least}")
    if value > MAX_STEP:
        raise bad_term(term, f"the {name} must be at most {MAX_STEP}")


def percent(fraction: float) -> str:
    """`0.05` as `5%`; the text is read as the same double."""
    # repr() is the shortest text that parses to the same double, and the shift by two digits is exact.
    return f"{Decimal(repr(float(fraction))).scaleb(2):f}%"


def _up_to(total_steps: int, steps: tuple[int, ...]) -> tuple[int, ...]:
    return steps[: bisect_right(steps, total_steps)]


@dataclass(frozen=True, slots=True)
class At:
    """One step."""

    step: int

    def __post_init__(self) -> None:
        check_whole(self, "step", self.step, least=0)

    def __str__(self) -> str:
        return str(self.step)

    def steps(self, total_steps: int) -> tuple[int, ...]:
        return _up_to(total_steps, (self.step,))


@dataclass(frozen=True, slots=True)
class Every:
    """Every `stride` steps, as an integer `save_steps` in Hugging Face: 25, 50, ... for 25, never 0."""

    stride: int

    def __post_init__(self) -> None:
        check_whole(self, "stride", self.stride, least=1)

    def __str__(self) -> str:
        return f"every:{self.stride}"

    def steps(self, total_steps: int) -> range:
        return range(self.stride, total_steps + 1, self.stride)


@dataclass(frozen=True, slots=True)
class EveryFraction:
    """Every `ceil(total_steps * fraction)` steps, as a float `save_steps` in Hugging Face.

    The product is a float product, as in `transformers.TrainerState.compute_steps`: 0.07 of 100 steps is
    7.000000000000001, hence every 8.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not isinstance(self.fraction, float):
            raise bad_term(f"every:{self.fraction}", "the fraction must be a float such as 0.05")
        if not 0 < self.fraction < 1:
            raise bad_term(self, "the fraction must be more than 0% and less than 100%, such as every:5%")

    def __str__(self) -> str:
        return f"every:{percent(self.fraction)}"

    def steps(self, total_steps: int) -> range:
        stride = max(1, math.ceil(total_steps * self.fraction))
        return range(stride, total_steps + 1, stride)


@dataclass(frozen=True, slots=True)
class Between:
    """Every `stride` steps from `start` to `stop`, including `stop` if the stride lands on it."""

    start: int
    stop: int
    stride: int

    def __post_init__(self) -> None:
        check_whole(self, "start", self.start, least=0)
        check_whole(self, "stop", self.stop, least=0)
        check_whole(self, "stride", self.stride, least=1)
        if self.stop < self.start:
            swapped = Between(self.stop, self.start, self.stride)
            raise bad_term(self, f'the stop must not be before the start; did you mean "{swapped}"?')

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
        check_whole(self, "start", self.start, least=0)
        check_whole(self, "stride", self.stride, least=1)

    def __str__(self) -> str:
        return f"{self.start}-:{self.stride}"

    def steps(self, total_steps: int) -> range:
        return range(self.start, total_steps + 1, self.stride)


@dataclass(frozen=True, slots=True)
class Log2:
    """The powers of two from 1 up to `limit`."""

    limit: int

    def __post_init__(self) -> None:
        check_whole(self, "limit", self.limit, least=1)

    def __str__(self) -> str:
        return f"log2:{self.limit}"

    def steps(self, total_steps: int) -> tuple[int, ...]:
        return _up_to(total_steps, tuple(2**power for power in range(self.limit.bit_length())))


@dataclass(frozen=True, slots=True)
class Geom:
    """`count` log-spaced steps from `start` to `stop`, both ends exact, rounded, without repeats."""

    start: int
    stop: int
    count: int

    def __post_init__(self) -> None:
        check_whole(self, "start", self.start, least=1)
        check_whole(self, "stop", self.stop, least=1)
        check_whole(self, "count", self.count, least=2)
        if self.stop <= self.start:
            raise bad_term(self, f"the stop must be after the start, {self.start}")
        if self.count > (room := self.stop - self.start + 1):
            largest = Geom(self.start, self.stop, room)
            raise bad_term(self, f'there are only {room} steps to choose from; did you mean "{largest}"?')

    def __str__(self) -> str:
        return f"geom:{self.start}-{self.stop}/{self.count}"

    def steps(self, total_steps: int) -> tuple[int, ...]:
        ratio, last = self.stop / self.start, self.count - 1
        inner = {round(self.start * ratio ** (i / last)) for i in range(1, last)}
        return _up_to(total_steps, tuple(sorted({self.start, *inner, self.stop})))


SimpleTerm: TypeAlias = At | Every | EveryFraction | Between | From | Log2 | Geom


@dataclass(frozen=True, slots=True)
class Preset:
    """A named list of terms; stops at the end of training like an open rule, however long its terms are."""

    name: str
    terms: tuple[SimpleTerm, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", self.name) or self.name in KEYWORDS:
            raise bad_term(self, "the name of a preset is letters, digits, dots and dashes, and no keyword")
        for term in self.terms:
            if isinstance(term, Preset):
                raise bad_term(self, f'a preset must not name another preset, here "{term}"')

    def __str__(self) -> str:
        return self.name

    def steps(self, total_steps: int) -> Steps:
        return Steps.union(term.steps(total_steps) for term in self.terms)


Term: TypeAlias = SimpleTerm | Preset


def unreachable_steps(term: Term, total_steps: int) -> range | tuple[int, ...]:
    """The steps that `term` writes out by hand and a run of `total_steps` never reaches."""
    match term:
        case At() | Between() | Log2() | Geom():
            steps = term.steps(MAX_STEP)
            return steps[bisect_right(steps, total_steps) :]
        case From(start=start) if start > total_steps:
            return (start,)
        case _:
            return ()
