"""The cost of one or several runs before any is started: steps, disk, W&B, memory, answers and judge calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from emtoolkit.config.sections import RunConfig
from emtoolkit.progress import Bar, no_bar
from emtoolkit.training.plan import Plan
from emtoolkit.training.prepare import SharedInputs, prepare
from emtoolkit.training.shared_cost import SharedCosts


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """The plan of one run. `parameters` are what a sweep sets for it.

    `steps_with_reuse` are the optimizer steps that are left to train if the run reuses, after the runs before it.

    `trajectory` is the same for runs whose weights are the same at every step. `published` tells whether checkpoints
    are logged to W&B.
    """

    plan: Plan
    trajectory: str
    published: bool
    parameters: Mapping[str, Any] = field(default_factory=dict)
    steps_with_reuse: int | None = None

    @property
    def answers(self) -> int | None:
        """The answers that an evaluation of every checkpoint samples; None if their number is not known beforehand."""
        return None if self.plan.count is None else self.plan.evaluation.samples * self.plan.count

    @property
    def judge_calls(self) -> int | None:
        """The calls to a judge that an evaluation of every checkpoint makes; None as `answers`."""
        return None if self.plan.count is None else self.plan.evaluation.judge_calls * self.plan.count


@dataclass(frozen=True, slots=True)
class Totals:
    """The sums over several runs.

    `versions` and `bytes_on_wandb` count a step of one trajectory once, whichever runs save it. `bytes` and
    `bytes_on_wandb` are None where the checkpoint size of a run is not known, and all counts of checkpoints and answers
    where a run chooses its steps during training. `peak` is the largest peak memory.
    """

    runs: int
    trajectories: int
    steps: int
    steps_with_reuse: int
    checkpoints: int | None
    bytes: int | None
    versions: int | None
    bytes_on_wandb: int | None
    peak: int | None
    answers: int | None
    judge_calls: int | None


def plan_one(config: RunConfig, *, bar: Bar = no_bar) -> PlannedRun:
    """The plan of one run.

    Raises:
        UserError: the run cannot work.
    """
    return plan_several([({}, config)], bar=bar)[0]


def plan_several(configs: Sequence[tuple[Mapping[str, Any], RunConfig]], *, bar: Bar = no_bar) -> list[PlannedRun]:
    """The plans of runs, each with its parameters; shared rows and base models are read once.

    Raises:
        UserError: one of the runs cannot work.
    """
    shared, costs = SharedInputs(), SharedCosts()
    planned = []
    for parameters, config in configs:
        prepared = prepare(config, allow_missing=True, shared=shared, bar=bar)
        # Data that are not on this machine have no digest; the name of the collection tells them apart.
        trajectory = f"{prepared.identity.collection}-{prepared.identity.fingerprint}"
        published = config.wandb.mode != "disabled"
        left = costs.steps_to_train(config, prepared)
        planned.append(PlannedRun(prepared.plan, trajectory, published, parameters, left))
    return planned


def totals(runs: Sequence[PlannedRun]) -> Totals:
    """The sums over `runs`."""
    versions: dict[str, set[int]] = {}
    sizes: dict[str, int | None] = {}
    for run in runs:
        if run.published:
            versions.setdefault(run.trajectory, set()).update(run.plan.steps)
            sizes[run.trajectory] = run.plan.checkpoint_bytes
    chosen = any(run.published and run.plan.adaptive is not None for run in runs)
    return Totals(
        runs=len(runs),
        trajectories=len({run.trajectory for run in runs}),
        steps=sum(run.plan.total_steps for run in runs),
        steps_with_reuse=sum(
            run.plan.total_steps if run.steps_with_reuse is None else run.steps_with_reuse for run in runs
        ),
        checkpoints=_sum([run.plan.count for run in runs]),
        bytes=_sum([run.plan.bytes for run in runs]),
        versions=None if chosen else sum(map(len, versions.values())),
        bytes_on_wandb=None
        if chosen
        else _sum([None if (size := sizes[name]) is None else size * len(versions[name]) for name in sizes]),
        peak=max((run.plan.memory.peak for run in runs if run.plan.memory is not None), default=None),
        answers=_sum([run.answers for run in runs]),
        judge_calls=_sum([run.judge_calls for run in runs]),
    )


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
