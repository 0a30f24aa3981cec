"""What a schedule would have seen of a dense reference, and which schedule follows curves best."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from emtoolkit.analysis.compare import interpolation_error, split_schedules, step_weights
from emtoolkit.analysis.suggest import best_steps, costs_of, in_grammar, suggest
from emtoolkit.errors import DataError, UserError
from emtoolkit.schedules.schedule import Schedule
from tests.analysis.evaluations import write_evaluation
from tests.in_process import emtoolkit

STEPS = list(range(0, 401, 25))
ZERO, HIGH = [0] * 8, [10, 25, 30, 15, 20, 30, 12, 22]


def jump(at: int) -> dict[int, list[int]]:
    """A reference of every 25 steps that jumps at step `at`."""
    return {step: HIGH if step >= at else ZERO for step in STEPS}


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("every:100,every:25,dense-early,0,log2:512", ["every:100", "every:25", "dense-early", "0,log2:512"]),
        ("0,40,every:100", ["0,40,every:100"]),
        ("0-150:25,150-300:50", ["0-150:25,150-300:50"]),
        ("dense-early;0,100; every:25,40", ["dense-early", "0,100", "every:25,40"]),
        ("pt1-3,geom:1-1000/10", ["pt1-3", "geom:1-1000/10"]),
    ],
)
def test_a_list_of_schedules_is_split_after_each_rule(text: str, specs: list[str]) -> None:
    assert split_schedules(text) == specs


def test_the_error_is_that_of_the_line_between_steps_and_of_the_first_value_before_them() -> None:
    steps, values = [0, 10, 20, 40], [0.0, 1.0, 0.0, 0.0]
    assert step_weights(np.array(steps, dtype=float)).tolist() == [5.0, 10.0, 15.0, 10.0]
    assert interpolation_error(steps, values, steps) == (0.0, 0.0)
    # Only step 10 is missed, by one, and has a quarter of the weight.
    assert interpolation_error(steps, values, [0, 20, 40]) == (pytest.approx(0.5), 1.0)
    # Before step 10 the curve has its value: step 0 is missed by one.
    assert interpolation_error(steps, values, [10, 20, 40]) == (pytest.approx(math.sqrt(5 / 40)), 1.0)
    assert math.isnan(interpolation_error(steps, values, [])[0])


def test_a_schedule_sees_the_onset_between_its_own_steps(tmp_path: Path) -> None:
    place = write_evaluation(tmp_path / "e", jump(75))
    done = emtoolkit("compare", place, "--schedules", "every:25,every:100,0,every:100,log2:512", "--json")
    assert done.code == 0
    (found,) = json.loads(done.out)["trajectories"]
    assert (found["reference"]["new_questions"]["lower"], found["reference"]["new_questions"]["upper"]) == (50, 75)
    dense, sparse, with_0, log2 = found["schedules"]
    assert (dense["new_questions"]["verdict"], dense["new_questions"]["width"]) == ("seen", 25)
    assert dense["rmse"] == 0.0
    assert (sparse["new_questions"]["verdict"], sparse["new_questions"]["upper"]) == ("before first", 100)
    assert sparse["new_questions"]["width"] is None
    assert (with_0["new_questions"]["verdict"], with_0["new_questions"]["width"]) == ("seen", 100)
    assert sparse["rmse"] > with_0["rmse"] > 0
    assert (log2["rmse"], log2["new_questions"], log2["missing"][:3]) == (None, None, [1, 2, 4])
    assert "log2:512 saves steps that were not evaluated (1, 2, 4, 8, 16, 32, 64, 128, 256)" in done.err
    assert 'schedule "log2:512": step 512 is past the end of training at step 400; such steps are left out' in done.err


def test_the_chance_is_that_of_both_ends_when_questions_are_drawn_again(tmp_path: Path) -> None:
    hot = {step: [45, 40, 0, 0, 0, 0, 0, 0] if step >= 75 else ZERO for step in STEPS}
    for name, curve, low, high in (("all", jump(75), 1.0, 1.0), ("hot", hot, 0.005, 0.1), ("flat", jump(999), 0, 0)):
        place = write_evaluation(tmp_path / name, curve)
        found = json.loads(emtoolkit("compare", place, "--schedules", "0,every:25;every:25", "--json").out)
        with_0, without = (view["chance"] for view in found["trajectories"][0]["schedules"])
        assert low <= with_0 <= high, name
        assert with_0 == without, name


def test_a_schedule_that_never_excludes_the_event_has_no_chance_of_both_ends(tmp_path: Path) -> None:
    place = write_evaluation(tmp_path / "e", jump(75))
    (found,) = json.loads(emtoolkit("compare", place, "--schedules", "every:100", "--json").out)["trajectories"]
    assert found["schedules"][0]["chance"] == 0.0


def test_several_trajectories_of_a_persona_have_a_line_over_all(tmp_path: Path) -> None:
    for number, at in enumerate((75, 125, 999)):
        write_evaluation(tmp_path / f"run{number}" / "evaluations" / "a", jump(at), fingerprint=f"f{number}")
    done = emtoolkit("compare", tmp_path, "--schedules", "0,every:100")
    assert "goodness, 3 trajectories:" in done.out
    table = done.out[done.out.index("goodness, 3 trajectories:") :].splitlines()
    assert table[2].split() == ["0,every:100", "0.0529", "2", "of", "3", "100"]


def test_disk_is_that_of_the_checkpoints_of_the_schedule(runs: Path, tmp_path: Path) -> None:
    from emtoolkit.checkpoints.listing import list_checkpoints

    sizes = {info.step: info.bytes for info in list_checkpoints(runs / "prompt")}
    curve = dict.fromkeys(sizes, ZERO)
    place = write_evaluation(tmp_path / "e", curve, trajectory=str(runs / "prompt"))
    (found,) = json.loads(emtoolkit("compare", place, "--schedules", "0,4", "--json").out)["trajectories"]
    assert found["reference"]["bytes"] == sum(sizes.values())
    assert found["schedules"][0]["bytes"] == sizes[0] + sizes[4] + sizes[9]


def test_too_few_steps_are_no_reference(tmp_path: Path) -> None:
    done = emtoolkit("compare", write_evaluation(tmp_path / "e", {0: ZERO, 10: ZERO}), "--schedules", "every:5")
    assert (done.code, done.out) == (2, "")
    assert "a reference for schedules needs at least 3 evaluated steps, found 2" in done.err


def test_dynamic_programming_finds_the_best_of_all_subsets() -> None:
    rng = np.random.default_rng(3)
    steps = [0, 5, 10, 20, 40, 70, 100, 130]
    curves = rng.normal(size=(2, 8)).cumsum(axis=1)
    for budget in (2, 3, 4, 6):
        chosen = best_steps(steps, costs_of(steps, curves), budget)
        assert chosen[-1] == 130
        assert len(chosen) <= budget

        def error(of: tuple[int, ...]) -> float:
            return sum(interpolation_error(steps, list(curve), of)[0] ** 2 for curve in curves)

        best = min(error((*rest, 130)) for rest in itertools.combinations(steps[:-1], budget - 1))
        assert error(tuple(chosen)) == pytest.approx(best)


def test_a_straight_line_needs_two_checkpoints() -> None:
    steps = list(range(0, 101, 10))
    assert best_steps(steps, costs_of(steps, np.array([[step / 100 for step in steps]])), 6) == [0, 100]


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([0, 25, 50, 75, 100, 150, 200, 397], "0-100:25,150,200,397"),
        ([0, 397], "0,397"),
        ([0, 1, 2, 10, 20, 30], "0-2:1,10-30:10"),
        ([5], "5"),
    ],
)
def test_a_suggestion_is_in_the_grammar_and_saves_its_steps(steps: list[int], text: str) -> None:
    assert in_grammar(steps) == text
    assert list(Schedule.parse(text).steps(steps[-1])) == steps


def test_a_suggestion_is_scored_on_the_trajectory_that_was_left_out() -> None:
    steps = list(range(0, 101, 10))
    early, late = ([float(step >= at) for step in steps] for at in (30, 70))
    found = suggest(["a", "b"], steps, [early, late], 5, others=["every:50"])
    assert (found.schedule, found.in_sample) == ("20,30,60,70,100", 0.0)
    first, second = found.held_out
    # The schedule of the late jump, 60,70,100, sees nothing of the early one: it is 0 up to step 20.
    assert (first.trajectory, first.best, first.suggested) == ("a", 0.0, pytest.approx(0.5))
    assert first.regret == first.suggested
    assert second.others == {"every:50": pytest.approx(0.24495, abs=1e-5)}


def test_one_trajectory_gives_no_suggestion_unless_it_is_called_in_sample(tmp_path: Path) -> None:
    place = write_evaluation(tmp_path / "e", jump(75))
    refused = emtoolkit("suggest", place, "--budget", "4")
    assert (refused.code, refused.out) == (2, "")
    assert "a schedule that is chosen on one curve fits that curve alone" in refused.err
    done = emtoolkit("suggest", place, "--budget", "4", "--in-sample")
    assert done.out.splitlines()[0] == "schedule        50,75,400"
    assert "In-sample: chosen on one curve, and not tested on any other." in done.out
    two = write_evaluation(tmp_path / "two", jump(100), fingerprint="f1")
    value = json.loads(emtoolkit("suggest", place, two, "--budget", "4", "--json").out)
    assert len(value["held_out"]) == 2
    assert value["schedule"] == "50-100:25,400"


def test_bad_requests_for_a_suggestion_are_sentences(tmp_path: Path) -> None:
    place = write_evaluation(tmp_path / "e", jump(75))
    assert "too few to choose 17 of them" in emtoolkit("suggest", place, "--budget", "17", "--in-sample").err
    other = write_evaluation(tmp_path / "o", {0: ZERO, 25: ZERO, 50: HIGH}, fingerprint="f1")
    assert "the trajectories end at different steps" in emtoolkit("suggest", place, other, "--budget", "2").err
    with pytest.raises(DataError, match="step 10 has no value"):
        suggest(["a"], [0, 10, 20], [[0.0, math.nan, 1.0]], 2, in_sample=True)
    with pytest.raises(UserError, match="--budget 1"):
        suggest(["a"], [0, 10], [[0.0, 1.0]], 1, in_sample=True)
