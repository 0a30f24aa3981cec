"""The best schedule of a given number of checkpoints for evaluated curves, and how well it does on other curves.

A schedule that was chosen on one curve fits that curve: its error there says nothing about the next one. So a
suggestion from several trajectories is scored on each trajectory with a schedule that was chosen on the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emtoolkit.analysis.compare import interpolation_error, step_weights
from emtoolkit.analysis.curves import Kind, curve_of
from emtoolkit.analysis.sources import Sources
from emtoolkit.errors import DataError, UserError, located
from emtoolkit.notebook_tables import AsTable
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.selection import select_steps

# Without a range of at least this many steps a list of steps is shorter.
_SHORTEST_RUN = 3


@dataclass(frozen=True, slots=True)
class Scored:
    """The errors on one trajectory that was left out, all with the same budget of checkpoints.

    `suggested` is chosen on the other trajectories, `best` on this one; `others` are the errors of schedules that are
    chosen on none, by their names.
    """

    trajectory: str
    suggested: float
    best: float
    others: dict[str, float]

    @property
    def regret(self) -> float:
        """How much the suggestion is worse than the best schedule in hindsight."""
        return self.suggested - self.best


@dataclass(frozen=True, slots=True)
class Suggestion(AsTable):
    """The suggested schedule in the grammar, its steps, its error on the curves it was chosen on, and on others.

    As a table: a row for each trajectory that was left out, with the errors of all schedules; without one, no row.
    """

    schedule: str
    steps: tuple[int, ...]
    in_sample: float
    held_out: tuple[Scored, ...]

    def _title(self) -> str:
        return f"{self.schedule}: RMSE in-sample {self.in_sample:.4f}"

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {
                "left_out": each.trajectory,
                "suggested": each.suggested,
                "best": each.best,
                "regret": each.regret,
                **each.others,
            }
            for each in self.held_out
        ]


def suggest_for(
    sources: Sources,
    metric: str,
    kind: Kind,
    budget: int,
    *,
    reference: str = "all",
    in_sample: bool = False,
) -> Suggestion:
    """The suggestion for the curves of the trajectories, at the steps that all of them have.

    Raises:
        UserError: the trajectories have different lengths, or see `suggest`.
    """
    evaluations = sources.trajectories
    curves = [curve_of(evaluation, metric, kind) for evaluation in evaluations]
    values = [{point.step: point.value for point in curve.new_questions} for curve in curves]
    ends = {max(each): evaluation.directory for each, evaluation in zip(values, evaluations, strict=True)}
    if len(ends) > 1:
        named = ", ".join(f"{directory} at step {step}" for step, directory in sorted(ends.items()))
        raise DataError(f"the trajectories end at different steps ({named}); suggest for trajectories of one length")
    steps = sorted(set.intersection(*(set(each) for each in values)))
    if reference != "all":
        with located("--reference"):
            steps = [*select_steps(reference, steps, lambda: steps[-1])]
    if len(steps) <= budget:
        raise DataError(
            f"{evaluations[0].directory}: {len(steps)} steps are evaluated in every trajectory, too few to choose "
            f"{budget} of them (--budget); evaluate densely saved trajectories"
        )
    names = [str(evaluation.directory) for evaluation in evaluations]
    others = ("dense-early", f"every:{math.ceil(steps[-1] / budget)}")
    rows = [[each[step] for step in steps] for each in values]
    return suggest(names, steps, rows, budget, others=others, in_sample=in_sample)


def suggest(
    names: Sequence[str],
    steps: Sequence[int],
    curves: Sequence[Sequence[float]],
    budget: int,
    *,
    others: Sequence[str] = (),
    in_sample: bool = False,
) -> Suggestion:
    """The schedule of at most `budget` of `steps`, the last included, with the least squared error over `curves`.

    `curves` are the values of each trajectory of `names` at `steps`; `others` are schedules to score beside it.

    Raises:
        UserError: there is one trajectory and not `in_sample`, or the budget is below 2.
        DataError: a curve has a step without a value.
    """
    if budget < 2:
        raise UserError(f"--budget {budget}: a curve needs at least 2 checkpoints")
    if len(curves) == 1 and not in_sample:
        raise UserError(
            "one trajectory: a schedule that is chosen on one curve fits that curve alone; name several trajectories, "
            "or say --in-sample"
        )
    values = np.asarray(curves, dtype=np.float64)
    for name, row in zip(names, values, strict=True):
        if np.isnan(row).any():
            step = steps[int(np.flatnonzero(np.isnan(row))[0])]
            raise DataError(f"{name}: step {step} has no value; leave the step out with --reference")
    costs = costs_of(steps, values)
    chosen = best_steps(steps, costs, budget)
    fixed = {spec: _fixed(spec, steps) for spec in others}
    held_out = [
        Scored(
            names[i],
            _error(steps, values[i], best_steps(steps, costs.without(i), budget)),
            _error(steps, values[i], best_steps(steps, costs.only(i), budget)),
            {spec: _error(steps, values[i], of) for spec, of in fixed.items() if of is not None},
        )
        for i in range(len(values))
        if len(values) > 1
    ]
    errors = [_error(steps, row, chosen) for row in values]
    return Suggestion(in_grammar(chosen), tuple(chosen), math.sqrt(float(np.mean(np.square(errors)))), tuple(held_out))


@dataclass(frozen=True, slots=True)
class Costs:
    """Weighted squared errors of each curve, which add up over curves.

    `between` has the error between two neighbouring chosen steps i < j, of shape [curves, steps, steps], and `before`
    that before the first chosen step, of shape [curves, steps].
    """

    between: np.ndarray
    before: np.ndarray

    def only(self, curve: int) -> "Costs":
        """The costs of one curve."""
        return Costs(self.between[curve : curve + 1], self.before[curve : curve + 1])

    def without(self, curve: int) -> "Costs":
        """The costs of the other curves."""
        return Costs(np.delete(self.between, curve, axis=0), np.delete(self.before, curve, axis=0))


def costs_of(steps: Sequence[int], curves: np.ndarray) -> Costs:
    """The costs of `curves`, of shape [curves, steps]: linear interpolation, the first value before the first chosen
    step, and the weights of the trapezoidal rule.
    """
    at, size = np.asarray(steps, dtype=np.float64), len(steps)
    weights = step_weights(at)
    between, before = np.zeros((len(curves), size, size)), np.zeros((len(curves), size))
    for i in range(size):
        before[:, i] = np.sum(weights[:i] * (curves[:, :i] - curves[:, i : i + 1]) ** 2, axis=1)
        for j in range(i + 2, size):
            share = (at[i + 1 : j] - at[i]) / (at[j] - at[i])
            line = curves[:, i : i + 1] + share * (curves[:, j : j + 1] - curves[:, i : i + 1])
            between[:, i, j] = np.sum(weights[i + 1 : j] * (curves[:, i + 1 : j] - line) ** 2, axis=1)
    return Costs(between, before)


def best_steps(steps: Sequence[int], costs: Costs, budget: int) -> list[int]:
    """The at most `budget` steps with the least error, by dynamic programming; the last step is always one."""
    between, before, size = costs.between.sum(axis=0), costs.before.sum(axis=0), len(steps)
    best = np.full((budget, size), np.inf)
    previous = np.full((budget, size), -1)
    best[0] = before
    for k in range(1, min(budget, size)):
        for j in range(k, size):
            found = best[k - 1, :j] + between[:j, j]
            previous[k, j] = int(np.argmin(found))
            best[k, j] = found[previous[k, j]]
    # The fewest steps of those that are equally good.
    k, j = int(np.argmin(best[:, -1])), size - 1
    chosen = []
    while j >= 0:
        chosen.append(int(steps[j]))
        j, k = int(previous[k, j]), k - 1
    return chosen[::-1]


def in_grammar(steps: Sequence[int]) -> str:
    """`steps` as a schedule, with ranges where three or more are equally far apart."""
    terms, i = [], 0
    while i < len(steps):
        j = i + 1
        while j + 1 < len(steps) and steps[j + 1] - steps[j] == steps[i + 1] - steps[i]:
            j += 1
        if j < len(steps) and j - i + 1 >= _SHORTEST_RUN:
            terms.append(f"{steps[i]}-{steps[j]}:{steps[i + 1] - steps[i]}")
            i = j + 1
        else:
            terms.append(str(steps[i]))
            i += 1
    return ",".join(terms)


def _fixed(spec: str, steps: Sequence[int]) -> list[int] | None:
    """The steps of a schedule, or None where the reference lacks one of them."""
    wanted = list(Schedule.parse(spec).steps(steps[-1]))
    return wanted if set(wanted) <= set(steps) else None


def _error(steps: Sequence[int], values: np.ndarray, chosen: Sequence[int]) -> float:
    return interpolation_error(steps, [float(value) for value in values], chosen)[0]
