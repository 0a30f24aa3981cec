"""The distributions of a sweep parameter: the values of a grid, and the draws of a random search.

Names, defaults and bounds are those of W&B's sweep configuration
(https://docs.wandb.ai/models/sweeps/sweep-config-keys).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from emtoolkit.errors import ConfigError, nearest, shown
from emtoolkit.number_checks import is_number
from emtoolkit.yaml_scalars import number_meant


class Distribution(Protocol):
    """The possible values of one parameter."""

    def grid(self) -> tuple[Any, ...] | None:
        """All values in W&B's order, None for a distribution that a grid cannot list."""

    def draw(self, random: Random) -> Any:
        """One value, drawn with `random`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`value: 1` or `values: [1, 2]`, with equal `probabilities` by default."""

    values: tuple[Any, ...]
    probabilities: tuple[float, ...] | None = None

    def grid(self) -> tuple[Any, ...] | None:
        return self.values if self.probabilities is None else None

    def draw(self, random: Random) -> Any:
        return random.choices(self.values, self.probabilities)[0]


@dataclass(frozen=True, slots=True)
class IntUniform:
    """The whole numbers from `minimum` to `maximum`, both included."""

    minimum: int
    maximum: int

    def grid(self) -> tuple[int, ...] | None:
        if self.maximum - self.minimum >= _LONGEST_GRID:
            return None
        return tuple(range(self.minimum, self.maximum + 1))

    def draw(self, random: Random) -> int:
        return random.randint(self.minimum, self.maximum)


@dataclass(frozen=True, slots=True)
class Uniform:
    """A number from `minimum` to `maximum`, uniform in its logarithm with `log`, rounded to a multiple of `q`."""

    minimum: float
    maximum: float
    log: bool = False
    q: float | None = None

    def grid(self) -> tuple[float, ...] | None:
        if self.q is None or self.log:
            return None
        # As in W&B (numpy's arange), the end is excluded.
        if (self.maximum - self.minimum) / self.q > _LONGEST_GRID:
            return None
        count = math.ceil((self.maximum - self.minimum) / self.q)
        return tuple(self.minimum + i * self.q for i in range(count))

    def draw(self, random: Random) -> float:
        if self.log:
            drawn = math.exp(random.uniform(math.log(self.minimum), math.log(self.maximum)))
        else:
            drawn = random.uniform(self.minimum, self.maximum)
        return drawn if self.q is None else round(drawn / self.q) * self.q


# More values of one parameter are a range to draw from, not a list.
_LONGEST_GRID = 100_000
_KEYS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    "uniform": ("min", "max"),
    "int_uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "log_uniform_values": ("min", "max"),
    "q_log_uniform_values": ("min", "max", "q"),
}
_ONLY_AT_WANDB = (
    *("normal", "q_normal", "log_normal", "q_log_normal", "beta", "q_beta"),
    *("log_uniform", "q_log_uniform", "inv_log_uniform", "inv_log_uniform_values"),
)


def parse_distribution(content: Any, where: str) -> Distribution:
    """The distribution that `content` describes; `where` is its file and dotted key, for errors.

    Raises:
        ConfigError: `content` is not a distribution, or W&B's server would have to draw from it.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: {shown(content)} is not a mapping such as {{values: [1, 2]}} or {{value: 1}}")
    name = _name(content, where)
    for key in content:
        known = (*_KEYS[name], "distribution")
        if key not in known:
            raise ConfigError(
                f"{where}.{key}: unknown key of the distribution {name} (value {shown(content[key])}); "
                f"expected {', '.join(known)}{nearest(str(key), known)}"
            )
    if name == "constant":
        return Choice((_required(content, "value", where),))
    if name.startswith("categorical"):
        return _choice(content, where)
    return _range(name, content, where)


def _name(content: Mapping[str, Any], where: str) -> str:
    given = content.get("distribution")
    if isinstance(given, str) and given in _ONLY_AT_WANDB:
        raise ConfigError(
            f"{where}.distribution: {shown(given)} is not supported without a server; expected one of "
            f"{', '.join(_KEYS)}, or use 'wandb sweep' and 'wandb agent'"
        )
    if given is not None and not (isinstance(given, str) and given in _KEYS):
        choices = [*_KEYS, *_ONLY_AT_WANDB]
        raise ConfigError(
            f"{where}.distribution: {shown(given)} is not one of {', '.join(_KEYS)}{nearest(str(given), choices)}"
        )
    if given is not None:
        return str(given)
    if "values" in content:
        return "categorical_w_probabilities" if "probabilities" in content else "categorical"
    if "min" in content or "max" in content:
        whole = all(isinstance(number_meant(content.get(bound), whole=False), int) for bound in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    if "value" in content:
        return "constant"
    keys = ("value", "values", "min", "max", "distribution")
    found = next(iter(content), "")
    raise ConfigError(
        f"{where}: {shown(dict(content))}: expected value, values, or min and max{nearest(str(found), keys)}"
    )


def _choice(content: Mapping[str, Any], where: str) -> Choice:
    values = _required(content, "values", where)
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where}.values: {shown(values)} is not a list of at least one value")
    probabilities = content.get("probabilities")
    if probabilities is None:
        return Choice(tuple(values))
    numbers = isinstance(probabilities, list) and all(_is_number(p) and p >= 0 for p in probabilities)
    if not numbers or len(probabilities) != len(values) or not math.isclose(sum(probabilities), 1, abs_tol=1e-6):
        raise ConfigError(
            f"{where}.probabilities: {shown(probabilities)} is not {len(values)} probabilities, one for each value, "
            "that sum to 1"
        )
    return Choice(tuple(values), tuple(probabilities))


def _range(name: str, content: Mapping[str, Any], where: str) -> Distribution:
    minimum, maximum = (number_meant(_required(content, bound, where), whole=False) for bound in ("min", "max"))
    for bound, value in (("min", minimum), ("max", maximum)):
        if not _is_number(value) or (name == "int_uniform" and not isinstance(value, int)):
            kind = "a whole number" if name == "int_uniform" else "a number"
            raise ConfigError(f"{where}.{bound}: {shown(value)} is not {kind}")
    if minimum > maximum:
        raise ConfigError(f"{where}.min: {shown(minimum)} is greater than max, {shown(maximum)}")
    if name == "int_uniform":
        return IntUniform(minimum, maximum)
    log = "log" in name
    if log and minimum <= 0:
        raise ConfigError(f"{where}.min: {shown(minimum)} has no logarithm; expected a number above 0")
    q = number_meant(content.get("q", 1), whole=False) if name.startswith("q_") else None
    if q is not None and not (_is_number(q) and q > 0):
        raise ConfigError(f"{where}.q: {shown(q)} is not a number above 0")
    # The width of the range, and every multiple of q in it, must be a number.
    if not math.isfinite(float(maximum) - float(minimum)) or (
        q is not None and not all(math.isfinite(float(bound) / q) for bound in (minimum, maximum))
    ):
        raise ConfigError(f"{where}.max: {shown(maximum)} is too far from {shown(minimum)} to draw between them")
    return Uniform(minimum, maximum, log=log, q=q)


def _required(content: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in content:
        raise ConfigError(f"{where}.{key}: the key is missing")
    return content[key]


def _is_number(value: object) -> bool:
    return is_number(value) and math.isfinite(value)
