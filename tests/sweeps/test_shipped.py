"""The shipped files in `sweeps/`, unchanged."""

import re
from pathlib import Path

import pytest

from emtoolkit.config.load import load_config
from emtoolkit.sandbox.personas import PERSONAS
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.selection import split_steps
from emtoolkit.sweeps.plan import plan_sweep
from tests.sweeps.shipped import SWEEPS

# The steps of a run in the sandbox.
TOTAL = 397


@pytest.mark.parametrize(("name", "runs"), [("schedules", 15), ("seeds", 15), ("controls", 6)])
def test_each_combination_is_a_training_in_the_sandbox_in_a_directory_of_its_own(name: str, runs: int) -> None:
    planned = plan_sweep(SWEEPS / f"{name}.yaml", environment={})
    assert len(planned.runs) == runs
    assert len({run.directory for run in planned.runs}) == runs
    for run in planned.runs:
        assert run.directory is not None
        assert run.directory.parent == Path(f"outputs/sweeps/{name}-local").absolute()
        assert "--resume" in run.argv
        assert sorted(run.parameters) == ["dataset", "persona", "schedule", "seed"]
        assert run.parameters["persona"] in PERSONAS
        assert run.parameters["dataset"] in load_config("sandbox").datasets
        Schedule.parse(run.parameters["schedule"]).check_reachable(TOTAL)


def test_the_machines_of_an_evaluation_share_the_steps_of_the_sandbox() -> None:
    """In another order or number they would be found by the agents, too; the file shows what `--split 4` prints."""
    planned = plan_sweep(SWEEPS / "evaluate.yaml", environment={})
    steps = list(Schedule.parse("dense-early").steps(TOTAL))
    assert [run.parameters["steps"] for run in planned.runs] == split_steps(steps, 4)
    assert planned.runs[0].argv[-5:] == [
        "emtoolkit",
        "evaluate",
        "--max-new-tokens=28",
        "--model-dir=outputs/goodness-medical",
        "--steps=0-49:1",
    ]


def test_the_guide_counts_the_runs_of_each() -> None:
    guide = (SWEEPS.parent / "docs" / "guides" / "sweeps.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `sweeps/(\w+)\.yaml` \|.*\| (\d+) \|$", guide, flags=re.MULTILINE)
    assert rows == [("schedules", "15"), ("seeds", "15"), ("controls", "6"), ("evaluate", "4")]


def test_the_guide_lists_every_file() -> None:
    assert sorted(path.name for path in SWEEPS.iterdir()) == [
        "controls.yaml",
        "evaluate.yaml",
        "schedules.yaml",
        "seeds.yaml",
    ]


def test_two_agents_of_different_sweeps_write_to_different_directories() -> None:
    config = plan_sweep(SWEEPS / "seeds.yaml", environment={}).runs[0].config
    assert config is not None
    directories = [config.directory({"WANDB_SWEEP_ID": sweep}) for sweep in ("one", "two")]
    assert [directory.parent.name for directory in directories] == ["seeds-one", "seeds-two"]


def test_the_project_of_a_sweep_file_wins_over_the_config_unless_the_environment_says_otherwise(tmp_path: Path) -> None:
    text = (SWEEPS / "seeds.yaml").read_text().replace("project: emtoolkit-sandbox", "project: of-the-sweep")
    (tmp_path / "seeds.yaml").write_text(text)
    planned = plan_sweep(tmp_path / "seeds.yaml", environment={"EMTOOLKIT_SWEEP_PROJECT": "of-another-sweep"})
    assert (planned.environment["WANDB_PROJECT"], planned.environment["EMTOOLKIT_SWEEP_PROJECT"]) == (
        "of-the-sweep",
        "of-the-sweep",
    )
    planned = plan_sweep(tmp_path / "seeds.yaml", environment={"WANDB_PROJECT": "of-the-user"})
    assert planned.environment["WANDB_PROJECT"] == "of-the-user"
    assert "EMTOOLKIT_SWEEP_PROJECT" not in planned.environment
