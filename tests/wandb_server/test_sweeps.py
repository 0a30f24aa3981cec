"""W&B's command line runs a grid sweep from its file to its last run."""

import sys
from pathlib import Path

import pytest
import wandb

from tests.wandb_server import WandbServer
from tests.wandb_server.processes import run_wandb
from tests.wandb_server.resolvers.sweeps import grid

PROGRAM = """
import argparse, wandb
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--rank", type=int)
given = parser.parse_args()
with wandb.init() as run:
    run.log({"loss": given.lr * given.rank})
"""
SWEEP = f"""
program: program.py
method: grid
project: swept
metric: {{name: loss, goal: minimize}}
parameters:
  lr: {{values: [0.5, 0.25]}}
  rank: {{value: 8}}
command: ["{sys.executable}", "${{program}}", "${{args}}"]
"""


def test_an_agent_runs_every_combination_of_the_grid(wandb_server: WandbServer, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "sweep.yaml").write_text(SWEEP)

    told = run_wandb(tmp_path, "sweep", "sweep.yaml")
    assert ("tester", "swept") in wandb_server.store.projects, told
    (name,) = wandb_server.store.project("tester", "swept").sweeps
    run_wandb(tmp_path, "agent", "--count", "2", f"tester/swept/{name}")

    sweep = wandb_server.store.project("tester", "swept").sweeps[name]
    assert sweep.state == "FINISHED"
    assert [(run.config, run.summary["loss"]) for run in sweep.runs] == [
        ({"lr": 0.5, "rank": 8}, 4.0),
        ({"lr": 0.25, "rank": 8}, 2.0),
    ]
    public = wandb.Api().sweep(f"tester/swept/{name}")  # type: ignore[no-untyped-call]
    assert (public.state, public.expected_run_count, len(public.runs)) == ("FINISHED", 2, 2)
    assert public.best_run().summary["loss"] == 2.0


def test_a_grid_is_the_product_of_its_lists() -> None:
    parameters = {"a": {"values": [1, 2]}, "b": {"value": "x"}, "c": {"parameters": {"d": {"values": [3, 4]}}}}

    combinations = grid({"method": "grid", "parameters": parameters})

    assert [tuple(combination.values()) for combination in combinations] == [
        (1, "x", 3),
        (1, "x", 4),
        (2, "x", 3),
        (2, "x", 4),
    ]


def test_a_method_that_is_not_implemented_is_named() -> None:
    with pytest.raises(ValueError, match="'bayes' is not implemented"):
        grid({"method": "bayes", "parameters": {"a": {"values": [1]}}})
