"""The shipped sweep with real agents: `wandb sweep`, then two `wandb agent` at once on one machine."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.processes import HANG_SECONDS
from tests.saving.trainings import saved_steps
from tests.sweeps.shipped import fast_version
from tests.wandb_server import WandbServer

WriteConfig = Callable[..., Path]
COMBINATIONS = [
    ("baseline", "every:4"),
    ("baseline", "0,log2:8"),
    ("curt", "every:4"),
    ("curt", "0,log2:8"),
]


def test_two_agents_share_a_sweep_and_run_each_combination_once_in_a_directory_of_its_own(
    wandb_server: WandbServer,
    start: Callable[..., "subprocess.Popen[str]"],
    write_config: WriteConfig,
    tmp_path: Path,
) -> None:
    path = fast_version("schedules", write_config(), tmp_path)
    content = yaml.safe_load(path.read_text())
    content["parameters"] |= {
        "control": {"value": False},
        "lora.layers-to-transform": {"value": None},
        "training": {
            "parameters": {
                "weight_decay": {"value": 0.5},
                "lr_scheduler": {"value": "cosine"},
                # A text to the agent, written without quotes.
                "learning_rate": {"value": "2e-2"},
            }
        },
    }
    path.write_text(yaml.safe_dump(content))
    said, _ = start("sweep", "schedules.yaml").communicate(timeout=HANG_SECONDS)
    found = re.search(r"wandb agent (tester/emtoolkit-sandbox/(\w+))", said)
    assert found, said
    sweep_path, sweep_id = found.groups()

    agents = [start("agent", sweep_path) for _ in range(2)]
    words = [agent.communicate(timeout=HANG_SECONDS)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], words

    with wandb_server.store.lock:
        project = wandb_server.store.project("tester", "emtoolkit-sandbox")
        sweep = project.sweeps[sweep_id]
        runs = list(project.runs.values())
        assert sweep.state == "FINISHED"
        assert sweep.config["name"] == "schedules"
        assert [run.state for run in runs] == ["finished"] * 4, words
        assert {run.sweep_name for run in runs} == {sweep_id}
        # Axes of the parallel coordinates.
        assert sorted((run.config["persona"], run.config["schedule"]) for run in runs) == sorted(COMBINATIONS)
        assert {(run.config["dataset"], run.config["seed"]) for run in runs} == {("medical", 42)}
        assert all(agent.runs for agent in sweep.agents.values())
        named = {run.display_name for run in runs}
        # The keys of a section that the sweep does not name keep the values of the config.
        trainings = [run.config["emtoolkit"]["training"] for run in runs]
        assert [(each["weight_decay"], each["lr_scheduler"]) for each in trainings] == [(0.5, "cosine")] * 4
        assert [each["learning_rate"] for each in trainings] == [0.02] * 4
        assert [each["max_grad_norm"] for each in trainings] == [1.0] * 4
        # The union of both schedules: the runs of one persona are on one trajectory.
        steps = [
            {alias for alias in coll.aliases if alias.startswith("step-")} for coll in project.collections.values()
        ]

    out = tmp_path / "outputs" / "sweeps" / f"schedules-{sweep_id}"
    # What the template leaves out is the same in all runs, and so is its digest.
    (end,) = {directory.name[-9:] for directory in out.iterdir()}
    directories = {directory.name: saved_steps(directory) for directory in out.iterdir()}
    assert {name.removesuffix(end): steps for name, steps in directories.items()} == {
        "baseline-medical-s42-every-4": [4, 8, 9],
        "baseline-medical-s42-0_log2-8": [0, 1, 2, 4, 8, 9],
        "curt-medical-s42-every-4": [4, 8, 9],
        "curt-medical-s42-0_log2-8": [0, 1, 2, 4, 8, 9],
    }
    assert named == set(directories)
    assert [step for step in steps if step] == [{f"step-{step}" for step in (0, 1, 2, 4, 8, 9)}] * 2
