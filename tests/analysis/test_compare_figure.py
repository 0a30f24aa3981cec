"""The figure of `emtoolkit compare`: which schedules are on the Pareto front, and the file."""

from pathlib import Path

import pytest

from emtoolkit.analysis.compare import compare_all
from emtoolkit.analysis.compare_figure import ScheduleCost, compare_figure, pareto_front, schedule_costs
from emtoolkit.analysis.onset_results import Event
from emtoolkit.analysis.sources import read_sources
from tests.analysis.evaluations import write_evaluation
from tests.in_process import emtoolkit

STEPS = [0, 25, 50, 75, 100, 200]
CURVE = {step: [0] * 4 if step < 75 else [25, 30, 20, 28] for step in STEPS}


def test_a_schedule_is_on_the_front_where_no_other_is_better() -> None:
    costs = [
        ScheduleCost("cheap", 2, 0.3),
        ScheduleCost("equal", 2, 0.3),
        ScheduleCost("worse", 3, 0.4),
        ScheduleCost("as many, worse", 2, 0.35),
        ScheduleCost("exact", 5, 0.0),
    ]
    assert [each.schedule for each in pareto_front(costs[::-1])] == ["equal", "cheap", "exact"]


def test_the_figure_has_a_dot_for_each_schedule_that_can_be_judged(tmp_path: Path) -> None:
    place = write_evaluation(tmp_path / "e", CURVE)
    found = compare_all(
        read_sources([place]), ["0,every:100", "0,25,50,75,100,200", "0,every:10", "every:200"], Event()
    )
    costs = {each.schedule: (each.checkpoints, round(each.rmse, 3)) for each in schedule_costs(found)}
    assert list(costs) == ["0,every:100", "0,25,50,75,100,200", "every:200"]
    assert costs["0,25,50,75,100,200"] == (6, 0.0)
    (axes,) = compare_figure(found).axes
    dots = {(line.get_xdata()[0], round(line.get_ydata()[0], 3)) for line in axes.lines if len(line.get_xdata()) == 1}
    assert dots == set(costs.values())
    assert [text.get_text() for text in axes.texts] == list(costs)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_command_writes_the_figure(tmp_path: Path, suffix: str) -> None:
    place, file = write_evaluation(tmp_path / "e", CURVE), tmp_path / f"front.{suffix}"
    done = emtoolkit("compare", place, "--schedules", "0,every:100", "--figure", file)
    assert (done.code, done.err) == (0, "")
    assert file.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[suffix])


def test_a_figure_of_another_format_or_of_nothing_is_refused(tmp_path: Path) -> None:
    place = write_evaluation(tmp_path / "e", CURVE)
    done = emtoolkit("compare", place, "--schedules", "0,every:100", "--figure", tmp_path / "front.gif")
    assert (done.code, done.out) == (2, "")
    assert "expected a name that ends in .png, .pdf or .svg" in done.err
    none = emtoolkit("compare", place, "--schedules", "0,every:10", "--figure", tmp_path / "front.png")
    assert none.code == 2
    assert "figure: no schedule can be judged" in none.err
