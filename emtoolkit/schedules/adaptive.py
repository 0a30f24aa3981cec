"""Terms whose steps are chosen while the model trains, from the distances that the weights have gone.

| term        | steps                                                                                          |
|-------------|------------------------------------------------------------------------------------------------|
| `moved:5%`  | each step at which the weights are 5 % of their distance from the start away from the last one |
| `budget:20` | at most 20 steps, evenly spaced along the path of the weights                                  |

Everything here is pure: a term sees the distances of a measured step and says what follows, and a `WeightPath` is its
whole state. Step 0 is the first step of both terms, and the last step of training is saved, too.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

from emtoolkit.schedules.terms import bad_term, check_whole, percent

# A distance is measured again after this share of what the term asks for, where the path is straight.
_RESOLUTION = 10
# The path is measured at this many times as many points as the budget keeps, or at every step.
_POINTS_FOR_EACH_KEPT = 16
# A new checkpoint is due after this multiple of the even spacing. From 1 to 1.25 the final spacing is equally even
# (the largest gap is at most 1.6 times the even gap), and 1.25 makes fewer saves.
_SPACING = 1.25


@dataclass(frozen=True, slots=True)
class Distances:
    """How far the weights of a step have `moved` since the last kept step or, for a budget, the last measured step.

    `from_start` is their distance from the weights of step 0; only `moved:` reads it.
    """

    moved: float
    from_start: float = math.nan


@dataclass(frozen=True, slots=True)
class WeightPath:
    """The length of the measured path so far, and the kept steps with their positions on the path, ascending."""

    length: float = 0.0
    kept: tuple[tuple[int, float], ...] = ((0, 0.0),)

    @property
    def steps(self) -> tuple[int, ...]:
        """The kept steps."""
        return tuple(step for step, _ in self.kept)

    def longer_by(self, distance: float) -> "WeightPath":
        """The path after another `distance`; a distance that is not finite adds nothing."""
        return replace(self, length=self.length + distance) if math.isfinite(distance) else self

    def keeping(self, step: int) -> "WeightPath":
        """The path with its end kept as `step`, once."""
        return self if step in self.steps else replace(self, kept=(*self.kept, (step, self.length)))

    def without(self, step: int) -> "WeightPath":
        """The path without `step` among the kept steps."""
        return replace(self, kept=tuple(each for each in self.kept if each[0] != step))

    def to_json(self) -> dict[str, Any]:
        return {"length": self.length, "kept": [list(each) for each in self.kept]}

    @classmethod
    def from_json(cls, values: Any) -> "WeightPath":
        """The path that `to_json` wrote.

        Raises:
            ValueError: it is none.
        """
        try:
            return cls(float(values["length"]), tuple((int(step), float(at)) for step, at in values["kept"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"no path of weights ({error})") from error


@dataclass(frozen=True, slots=True)
class Moved:
    """Each step at which the weights are `fraction` of their distance from the start away from the last saved step.

    The first step at which the weights differ from the start is one of them. Where the path is straight, a step may be
    up to a tenth of `fraction` late: after step 10/`fraction` not every step is measured.
    """

    fraction: float

    moved_since_kept: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.fraction, float):
            raise bad_term(f"moved:{self.fraction}", "the share must be a float such as 0.05")
        if not 0 < self.fraction < 1:
            raise bad_term(self, "the share must be more than 0% and less than 100%, such as moved:5%")

    def __str__(self) -> str:
        return f"moved:{percent(self.fraction)}"

    def is_measured(self, step: int, total_steps: int) -> bool:
        """Whether the distances of `step` are measured: every step, and later every 2nd, 4th, 8th, …"""
        stride = 1 << max(0, math.frexp(step * self.fraction / _RESOLUTION)[1] - 1)
        return step > 0 and step % stride == 0

    def measured(self, path: WeightPath, distances: Distances) -> tuple[WeightPath, bool]:
        """The path after another measured step, and whether the step is saved."""
        moved = distances.moved
        return path, 0 < moved < math.inf and moved >= self.fraction * distances.from_start

    def surplus(self, path: WeightPath) -> int | None:
        """The kept step that is deleted now."""
        return None

    def most(self, total_steps: int) -> int | None:
        """The largest number of checkpoints; None where it is not known."""
        return None


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `count` checkpoints, evenly spaced along the path: fine ones are saved, and thinned as the path grows.

    A step is due once it is 1.25 even gaps after the last kept step, where the even gap is the length of the path so
    far divided by `count` - 1. If more than `count` steps are kept then, the one goes whose neighbours are closest to
    each other. In simulations the largest gap at the end is at most 1.6 even gaps, whatever the speed of the path;
    Bringmann et al. (Online Checkpointing with Improved Worst-Case Guarantees, ICALP 2013) prove what is possible.
    """

    count: int

    moved_since_kept: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_whole(self, "number of checkpoints", self.count, least=2)

    def __str__(self) -> str:
        return f"budget:{self.count}"

    def is_measured(self, step: int, total_steps: int) -> bool:
        """Whether the path is measured at `step`: at even intervals, and at the last step."""
        stride = max(1, total_steps // (_POINTS_FOR_EACH_KEPT * self.count))
        return step > 0 and (step % stride == 0 or step == total_steps)

    def measured(self, path: WeightPath, distances: Distances) -> tuple[WeightPath, bool]:
        """The path after another measured step, and whether the step is saved."""
        path = path.longer_by(distances.moved)
        since = path.length - path.kept[-1][1]
        return path, since > 0 and since >= _SPACING * path.length / (self.count - 1)

    def surplus(self, path: WeightPath) -> int | None:
        """The kept step that is deleted now, never the first or the newest; None if there is room for all."""
        kept = path.kept
        if len(kept) <= self.count:
            return None
        inner = range(1, len(kept) - 1)
        return kept[min(inner, key=lambda i: kept[i + 1][1] - kept[i - 1][1])][0]

    def most(self, total_steps: int) -> int | None:
        """The largest number of checkpoints."""
        return min(self.count, total_steps + 1)


AdaptiveTerm: TypeAlias = Moved | Budget
