"""The runs of a sweep that share a training: which they are, and what their commands say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.sweeps.plan import SweepPlan, plan_sweep

TRAIN = ["emtoolkit", "train", "run.yaml", "--output-dir=out/{persona}-{schedule}", "${args}"]


@pytest.fixture
def planned(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SweepPlan]:
    """The plan of a grid over `parameters` of the tiny config."""
    write_config()
    monkeypatch.chdir(tmp_path)

    def planned(*more: str, reuse: bool = True, **parameters: Any) -> SweepPlan:
        values = {name: {"values": each} for name, each in parameters.items()}
        sweep = {"method": "grid", "program": "emtoolkit", "parameters": values, "command": [*TRAIN, *more]}
        (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))
        return plan_sweep(tmp_path / "sweep.yaml", reuse=reuse, environment={})

    return planned


def of_reuse(plan: SweepPlan) -> list[list[str]]:
    """The words about reuse in each command."""
    return [[word for word in run.argv if "reuse" in word or "trajectory" in word] for run in plan.runs]


def test_runs_that_differ_in_their_schedules_are_one_group_and_save_the_union(
    planned: Callable[..., SweepPlan],
) -> None:
    plan = planned(persona=["curt", "baseline"], schedule=["0,2", "every:3"])
    groups = [run.group for run in plan.runs]
    assert groups[0] == groups[1] != groups[2] == groups[3]
    assert of_reuse(plan) == [["--reuse", "--trajectory.also_save=0,2,every:3"]] * 4
    configs = [run.config for run in plan.runs if run.config is not None]
    assert [config.trajectory.reuse for config in configs] == [True] * 4
    assert len({run.directory for run in plan.runs}) == 4


def test_a_run_without_a_sibling_has_nothing_to_save_for_others(planned: Callable[..., SweepPlan]) -> None:
    assert of_reuse(planned(persona=["curt"], schedule=["0,2"])) == [["--reuse"]]


@pytest.mark.parametrize("key", [{"training__learning_rate": 1e-3}, {"evaluation__eval_steps": 3}])
def test_runs_that_differ_in_more_are_no_group(planned: Callable[..., SweepPlan], key: dict[str, Any]) -> None:
    ((name, value),) = key.items()
    plan = planned(schedule=["0,2", "3"], **{name.replace("__", "."): [value, 2 * value]})
    assert len({run.group for run in plan.runs}) == 2


def test_no_reuse_trains_every_run_alone(planned: Callable[..., SweepPlan]) -> None:
    alone = planned(reuse=False, schedule=["0,2", "3"])
    assert (of_reuse(alone), {run.group for run in alone.runs}) == ([[], []], {None})
    # The shipped sweep files say it for W&B's agents.
    alone = planned("--reuse", reuse=False, schedule=["0,2", "3"])
    assert of_reuse(alone) == [["--no-reuse"], ["--no-reuse"]]
    said = planned("--no-reuse", schedule=["0,2", "3"])
    assert (of_reuse(said), {run.group for run in said.runs}) == ([["--no-reuse"], ["--no-reuse"]], {None})
