"""What one or several runs will cost, before any is started: steps, disk, W&B, memory, answers and judge calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from emtoolkit.checkpoints.records import BaseModelRecord
from emtoolkit.config.sections import RunConfig
from emtoolkit.models.base import base_identity
from emtoolkit.personas import load_persona
from emtoolkit.progress import Bar, no_bar
from emtoolkit.training.plan import Plan, RunData, find_adapter, identity_of, plan, plan_for, read_data

# What the rows of a run depend on, and how they are cut into tokens.
_DECIDES_DATA = {"model", "persona", "personas", "compose", "dataset", "datasets", "training", "seed"}


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run: the words that a sweep gives it, its plan, and a name for what decides its weights.

    `published` says whether its checkpoints go to W&B at all.
    """

    plan: Plan
    trajectory: str = ""
    published: bool = True
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> int:
        return self.plan.evaluation.samples * len(self.plan.steps)

    @property
    def judge_calls(self) -> int:
        return self.plan.evaluation.judge_calls * len(self.plan.steps)


@dataclass(frozen=True, slots=True)
class Totals:
    """Of several runs. `versions` and `bytes_on_wandb` count a step of one trajectory once, whoever saves it.

    Bytes are None where the size of a checkpoint is not known of every run; `peak` is the largest.
    """

    runs: int
    trajectories: int
    steps: int
    checkpoints: int
    bytes: int | None
    versions: int
    bytes_on_wandb: int | None
    peak: int | None
    answers: int
    judge_calls: int


def plan_one(config: RunConfig, *, bar: Bar = no_bar) -> PlannedRun:
    """The plan of one run.

    Raises:
        UserError: it cannot work.
    """
    return PlannedRun(plan(config, bar=bar), published=config.wandb.mode != "disabled")


def plan_several(configs: Sequence[tuple[Mapping[str, Any], RunConfig]]) -> list[PlannedRun]:
    """The plans of runs with the parameters that tell them apart; rows and base models are read once each.

    Raises:
        UserError: one of them cannot work.
    """
    rows: dict[str, RunData] = {}
    bases: dict[str, BaseModelRecord] = {}
    planned = []
    for parameters, config in configs:
        persona = load_persona(config.persona, config.personas, config.compose)
        wanted = config.model_dump_json(include=_DECIDES_DATA)
        if wanted not in rows:
            rows[wanted] = read_data(config, persona, for_plan=True)
        model = config.model.model_dump_json()
        if model not in bases:
            bases[model] = base_identity(config.model)
        adapter = find_adapter(config, persona, download=False, base=bases[model])
        identity = identity_of(config, persona, adapter, rows[wanted], bases[model])
        # Data that are not here yet have no digest, so that only their name tells them apart.
        trajectory = f"{identity.collection}-{identity.fingerprint}"
        published = config.wandb.mode != "disabled"
        planned.append(PlannedRun(plan_for(config, rows[wanted]), trajectory, published, parameters))
    return planned


def totals(runs: Sequence[PlannedRun]) -> Totals:
    """The sums over `runs`."""
    versions: dict[str, set[int]] = {}
    sizes: dict[str, int | None] = {}
    for run in runs:
        if run.published:
            versions.setdefault(run.trajectory, set()).update(run.plan.steps)
            sizes[run.trajectory] = run.plan.checkpoint_bytes
    return Totals(
        runs=len(runs),
        trajectories=len({run.trajectory for run in runs}),
        steps=sum(run.plan.total_steps for run in runs),
        checkpoints=sum(len(run.plan.steps) for run in runs),
        bytes=_sum([run.plan.bytes for run in runs]),
        versions=sum(map(len, versions.values())),
        bytes_on_wandb=_sum([None if (size := sizes[name]) is None else size * len(versions[name]) for name in sizes]),
        peak=max((run.plan.memory.peak for run in runs if run.plan.memory is not None), default=None),
        answers=sum(run.answers for run in runs),
        judge_calls=sum(run.judge_calls for run in runs),
    )


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
