"""`emtoolkit` with schedules that choose their steps in training: what trains, what is said, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.config.load import load_config
from emtoolkit.errors import ConfigError
from emtoolkit.training.run import train
from tests.in_process import emtoolkit
from tests.reuse.on_disk import digests
from tests.tiny import config_text


def steps(directory: Path) -> list[int]:
    return [info.step for info in list_checkpoints(directory, rehash=True) if info.complete]


def test_a_budget_trains_alone_ends_once_and_is_chosen_anew_for_another_one(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tiny run has 9 steps. The store of a reused trajectory is not asked, since nobody knows the steps."""
    out = tmp_path / "out"

    def run(schedule: str, *, resume: bool = True) -> bool:
        (tmp_path / "run.yaml").write_text(config_text(world, f"schedule: '{schedule}'"))
        words = ["wandb.mode=disabled", "trajectory.reuse=true", f"trajectory.store={tmp_path / 'store'}"]
        config = load_config(str(tmp_path / "run.yaml"), words, {"output_dir": str(out)})
        return train(config, resume=resume).trained

    assert run("budget:3", resume=False)
    assert "nothing is reused, because budget:3 chooses its steps during training" in caplog.text
    assert len(steps(out)) == 3
    assert (steps(out)[0], steps(out)[-1]) == (0, 9)
    assert not run("budget:3")
    # Another budget has chosen nothing yet, so the run starts again.
    assert run("budget:5")
    assert len(steps(out)) >= 5
    record = TrajectoryRecord.read_if_any(out)
    assert record is not None
    assert (record.schedule, record.ended_at, record.may_thin) == ("budget:5", 9, False)
    assert TrajectoryRecord("f", 9, "budget:5").may_thin
    assert not TrajectoryRecord("f", 9, "moved:5%").may_thin


@pytest.mark.parametrize("schedule", ["moved:40%", "budget:3"])
def test_a_finished_run_is_refined_and_stays_ended(schedule: str, world: Path, tmp_path: Path) -> None:
    for name, words in (("whole", "0-:1"), ("run", schedule)):
        (tmp_path / f"{name}.yaml").write_text(config_text(world, f"schedule: '{words}'"))
        options = {"output_dir": str(tmp_path / name)}
        train(load_config(str(tmp_path / f"{name}.yaml"), ["wandb.mode=disabled"], options))
    run = tmp_path / "run"
    # Training ends with step 8, so the checkpoint of step 9 is not computed again.
    passed = len(steps(run)) - 1
    done = emtoolkit("refine", run, "--steps", "0-:1")
    assert done.code == 0, done.err
    assert f"; {passed} existing steps came out with the same bytes" in " ".join(done.out.split())
    assert digests(run) == digests(tmp_path / "whole")
    # The budget bounds what the training chose, and no later call deletes what was asked for.
    again = emtoolkit("train", run / "config.yaml", "--resume")
    assert (again.code, "nothing was trained" in again.out, steps(run)) == (0, True, [*range(10)])
    record = TrajectoryRecord.read_if_any(run)
    assert record is not None
    assert (record.schedule, record.ended_at) == (schedule, 9)


def test_the_plan_says_what_is_known_beforehand(write_config: Callable[..., Path]) -> None:
    budget = emtoolkit("plan", str(write_config("schedule: 'budget:4'")))
    assert "saves at         0, 9, and steps that budget:4 chooses during training" in budget.out
    assert "checkpoints      at most 4 of " in budget.out
    moved = emtoolkit("plan", str(write_config("schedule: 'moved:5%,3'")))
    assert "saves at         0, 3, 9, and steps that moved:5% chooses during training" in moved.out
    assert "checkpoints      unknown" in moved.out
    found = json.loads(emtoolkit("plan", str(write_config("schedule: 'moved:5%'")), "--json").out)["runs"][0]
    assert (found["steps"], found["count"], found["bytes"]) == ([0, 9], None, None)


NOT_KNOWN = "budget:4 chooses its steps during training, so they are not known beforehand; name steps, such as every:25"


@pytest.mark.parametrize("key", ["eval_schedule: 'budget:4'", "probe: {questions: q.yaml, eval_schedule: 'budget:4'}"])
def test_an_evaluation_at_steps_that_are_not_known_is_refused(write_config: Callable[..., Path], key: str) -> None:
    config = write_config(rest=f"evaluation:\n  {key}")
    with pytest.raises(ConfigError, match=NOT_KNOWN):
        load_config(str(config))


def test_commands_that_need_the_steps_refuse_them(runs: Path) -> None:
    for argv in (
        ("schedule", "budget:4", "--total-steps", "400"),
        ("refine", str(runs / "prompt"), "--steps", "budget:4"),
    ):
        done = emtoolkit(*argv)
        assert (done.code, "chooses its steps during training" in " ".join(done.err.split())) == (2, True), done
