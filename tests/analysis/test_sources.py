"""The trajectories of a comparison: runs of one training as one, unfinished runs, and what cannot be compared."""

import json
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from tests.analysis.evaluations import SETTINGS, measure_rows, write_evaluation
from tests.in_process import emtoolkit

ZERO, HIGH = [0] * 8, [10, 25, 30, 15, 20, 30, 12, 22]


def curve(steps: list[int], at: int) -> dict[int, list[int]]:
    return {step: HIGH if step >= at else ZERO for step in steps}


def run_of(sweep: Path, name: str, steps: list[int], schedule: str, *, ended: bool = True, **same: Any) -> Path:
    """A run that saved `steps` and rises at step 75, with its evaluation unless `steps` is empty."""
    run = sweep / name
    run.mkdir(parents=True)
    fingerprint = same.get("fingerprint", "f0")
    TrajectoryRecord(fingerprint, 400, schedule, ended_at=400 if ended else None).write(run)
    if steps:
        write_evaluation(run / "evaluations" / "a", curve(steps, 75), **({"trajectory": str(run)} | same))
    return run


def test_runs_of_a_sweep_over_schedules_are_one_trajectory_and_give_the_schedules(tmp_path: Path) -> None:
    run_of(tmp_path, "a", [100, 200, 300, 400], "every:100")
    run_of(tmp_path, "b", [0, 50, 100, 200, 300, 400], "0,50,every:100")
    run_of(tmp_path, "c", [0, 25, 50, 75, 400], "0-75:25,400")
    done = emtoolkit("compare", tmp_path, "--json")
    (found,) = json.loads(done.out)["trajectories"]
    assert found["reference"]["steps"] == [0, 25, 50, 75, 100, 200, 300, 400]
    seen = {each["schedule"]: each["new_questions"] for each in found["schedules"]}
    assert {spec: (each["verdict"], each["lower"], each["upper"]) for spec, each in seen.items()} == {
        "every:100": ("before first", None, 100),
        "0,50,every:100": ("seen", 50, 100),
        "0-75:25,400": ("seen", 50, 75),
    }
    assert "one training, with the steps of all its 3 evaluations" in done.err
    # A schedule that no run had is judged by the steps of all runs.
    (other,) = json.loads(emtoolkit("compare", tmp_path, "--schedules", "50,75,400", "--json").out)["trajectories"]
    assert [each["schedule"] for each in other["schedules"]] == ["50,75,400"]


def test_runs_without_an_end_or_an_evaluation_are_named(tmp_path: Path) -> None:
    steps = [0, 100, 200, 300, 400]
    run_of(tmp_path, "a", steps, "0,every:100")
    stopped = run_of(tmp_path, "b", steps[:4], "0,every:100", ended=False, fingerprint="f1")
    without = run_of(tmp_path, "c", [], "0,every:100", fingerprint="f2")
    done = emtoolkit("compare", tmp_path, "--schedules", "0,every:200")
    assert done.code == 0
    assert f"emtoolkit: {stopped}: the training has not ended; 300 of 400 steps are evaluated\n" in done.err
    assert (f"emtoolkit: {without}: not evaluated, so it is left out; run 'emtoolkit evaluate {without}'\n") in done.err
    assert "the trajectories end at different steps" in done.err


def test_a_sweep_without_any_evaluation_says_which_command_to_run(tmp_path: Path) -> None:
    run = run_of(tmp_path, "a", [], "0,every:100")
    run_of(tmp_path, "b", [], "0,every:100", fingerprint="f1")
    done = emtoolkit("compare", tmp_path, "--schedules", "every:100")
    assert (done.code, done.out) == (2, "")
    assert (
        f"none of its 2 runs is evaluated yet; run 'emtoolkit evaluate' on each, such as 'emtoolkit evaluate {run}'"
        in (done.err)
    )


def test_a_sweep_file_names_the_combinations_that_did_not_finish(tmp_path: Path) -> None:
    run_of(tmp_path, "a", [0, 100, 400], "0,every:100")
    runs = {
        "k0": {"parameters": {"seed": 1}, "state": "finished", "exit_code": 0, "error": None},
        "k1": {"parameters": {"seed": 2}, "state": "failed", "exit_code": 1, "error": "no room"},
        "k2": {"parameters": {"seed": 3}, "state": "running", "exit_code": None, "error": None},
    }
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, "runs": runs}))
    done = emtoolkit("compare", tmp_path, "--schedules", "0,100,400")
    assert done.code == 0
    assert (
        f"emtoolkit: {tmp_path}: 2 of 3 runs of the sweep have not finished (seed=2: failed; seed=3: interrupted)\n"
        in (done.err)
    )


def test_one_training_that_was_sampled_twice_is_refused(tmp_path: Path) -> None:
    one = write_evaluation(tmp_path / "one", curve([0, 100, 400], 75))
    settings = SETTINGS | {"settings": "def", "sampling": {"seed": 1}}
    other = write_evaluation(tmp_path / "other", curve([0, 100, 400], 75), settings=settings)
    for command in (["compare", "--schedules", "0,100,400"], ["suggest", "--budget", "2"]):
        done = emtoolkit(command[0], one, other, *command[1:])
        assert (done.code, done.out) == (2, "")
        assert f"{other}: evaluates the same training as {one} with another sampling; name one\n" in done.err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"judge": "other@1", "settings": SETTINGS | {"judge": "other@1"}}, " in judge; evaluate both alike"),
        ({"engine": "stacked", "settings": SETTINGS | {"engine": "stacked"}}, " in engine; evaluate both alike"),
    ],
)
def test_trajectories_that_were_asked_or_judged_otherwise_are_refused(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    one = write_evaluation(tmp_path / "one", curve([0, 100, 400], 75))
    other = write_evaluation(tmp_path / "other", curve([0, 100, 400], 75), fingerprint="f1", **changes)
    for command in (["compare", "--schedules", "0,100,400"], ["suggest", "--budget", "2"]):
        done = emtoolkit(command[0], one, other, *command[1:])
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert sentence in done.err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["compare"], "--schedules: expected at least one schedule"),
        (["compare", "--schedules", "dense-erly"], "'dense-early'"),
        (["compare", "--schedules", ";"], "--schedules: expected at least one schedule"),
        (["compare", "--schedules", "every:0"], "every:0"),
        (
            ["compare", "--schedules", "every:100", "--reference", "every:150"],
            "a reference for schedules needs at least 3 evaluated steps",
        ),
        (["compare", "--schedules", "every:100", "--reference", "every:foo"], "every:foo"),
        (["compare", "--schedules", "every:100", "--metric", "margn"], "did you mean 'margin'?"),
        (["suggest", "--budget", "0", "--in-sample"], "--budget"),
        (["suggest", "--budget", "1", "--in-sample"], "--budget"),
        (["suggest", "--budget", "6", "--in-sample"], "too few to choose 6 of them"),
        (["suggest", "--budget", "2"], "a schedule that is chosen on one curve fits that curve alone"),
    ],
)
def test_bad_requests_are_one_sentence(argv: list[str], sentence: str, tmp_path: Path) -> None:
    margin = measure_rows("margin", {step: [0.1 * step, 0.2 * step] for step in (0, 100, 400)})
    place = write_evaluation(tmp_path / "e", curve([0, 50, 100, 150, 200, 400], 75), margin)
    done = emtoolkit(argv[0], place, *argv[1:])
    assert (done.code, done.out) == (2, ""), done.out
    assert sentence in done.err.replace("\n", " ")
    assert done.err.count("\n") == 1, done.err


def test_a_metric_that_some_steps_lack_is_named_and_a_broken_step_is_left_out(tmp_path: Path) -> None:
    margin = measure_rows("margin", {0: [-1.0, -2.0], 100: [1.0, 2.0], 200: [None, None], 400: [3.0, 5.0]})
    place = write_evaluation(tmp_path / "e", curve([0, 50, 100, 200, 400], 75), margin, coherent={200: 10.0})
    done = emtoolkit("compare", place, "--schedules", "0,every:100;0,200,400", "--metric", "margin", "--threshold", "1")
    assert done.code == 0
    assert "margin is not measured at steps 50" in done.err
    assert "saves steps that were not evaluated (300)" in done.err
    rates = json.loads(emtoolkit("compare", place, "--schedules", "0,200,400;0,100,400", "--json").out)
    without, with_100 = rates["trajectories"][0]["schedules"]
    assert "fewer than 50% of the answers are coherent" in " ".join(rates["notes"])
    assert (without["new_questions"]["lower"], without["new_questions"]["upper"]) == (0, 400)
    assert (with_100["new_questions"]["lower"], with_100["new_questions"]["upper"]) == (0, 100)
    refused = emtoolkit("suggest", place, "--budget", "2", "--in-sample")
    assert "step 200 has no value; leave the step out with --reference" in refused.err


def test_three_hundred_checkpoints_make_a_table_of_80_columns(tmp_path: Path) -> None:
    steps = list(range(0, 1500, 5))
    places = [
        write_evaluation(tmp_path / f"e{i}", curve(steps, at), trials=2, fingerprint=f"f{i}", persona="a" * 40)
        for i, at in enumerate((75, 400))
    ]
    done = emtoolkit("compare", *places, "--schedules", "every:25;0,log2:1024,every:200")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert "aaaa, 2 trajectories:" in done.out
    suggested = emtoolkit("suggest", *places, "--budget", "12")
    assert (suggested.code, suggested.err) == (0, "")
    assert max(map(len, suggested.out.splitlines())) <= 80
