"""The figure of `emtoolkit compare`: which schedules are on the Pareto front, and the file."""

import math
from pathlib import Path

import pytest

from emtoolkit.analysis.compare import compare_all
from emtoolkit.analysis.compare_figure import compare_figure
from emtoolkit.analysis.onset_results import Event
from emtoolkit.analysis.schedule_costs import ScheduleCost, pareto_front, schedule_costs
from emtoolkit.analysis.sources import read_sources
from tests.analysis.evaluations import write_evaluation
from tests.in_process import emtoolkit

STEPS = [0, 25, 50, 75, 100, 200]
CURVE = {step: [0] * 4 if step < 75 else [25, 30, 20, 28] for step in STEPS}


def test_a_schedule_is_on_the_front_where_no_other_is_better() -> None:
    costs = [
        ScheduleCost("cheap", 2, 0.3, width=100),
        ScheduleCost("equal", 2, 0.3, width=100),
        ScheduleCost("worse", 3, 0.4, width=100),
        ScheduleCost("as many, worse", 2, 0.35),
        ScheduleCost("exact", 5, 0.0, width=25),
    ]
    by_error = pareto_front(costs[::-1], lambda each: (each.checkpoints, each.rmse))
    assert [each.schedule for each in by_error] == ["equal", "cheap", "exact"]
    # A schedule that misses an onset has no width, however few checkpoints it saves.
    by_width = pareto_front([ScheduleCost("least", 1, 0.5), *costs], lambda each: (each.checkpoints, each.width))
    assert [each.schedule for each in by_width] == ["cheap", "equal", "exact"]


def test_the_figure_has_a_view_and_a_dot_for_each_schedule_that_can_be_judged(tmp_path: Path) -> None:
    place = write_evaluation(tmp_path / "e", CURVE)
    found = compare_all(
        read_sources([place]), ["0,every:100", "0,25,50,75,100,200", "0,every:10", "every:200"], Event()
    )
    judged = schedule_costs(found)
    costs = {each.schedule: (each.checkpoints, round(each.rmse, 3), each.width) for each in judged.schedules}
    assert costs == {
        "0,every:100": (3, 0.112, 100),
        "0,25,50,75,100,200": (6, 0.0, 75),
        "every:200": (1, 0.288, math.inf),
    }
    figure = compare_figure(found, judged)
    views, (widths, errors) = figure.axes[:-2], figure.axes[-2:]
    assert [axes.get_ylabel() for axes in views] == list(costs)
    _, reference, view = views[0].lines
    assert (list(reference.get_xdata()), list(view.get_xdata())) == (STEPS, [0, 100, 200])
    assert list(view.get_ydata()) == [0.0, pytest.approx(0.515), pytest.approx(0.515)]
    dots = {(line.get_xdata()[0], round(line.get_ydata()[0], 3)) for line in errors.lines if len(line.get_xdata()) == 1}
    assert dots == {(count, error) for count, error, _ in costs.values()}
    assert sorted(text.get_text() for text in widths.texts) == [
        "0,25,50,75,100,200",
        "0,every:100",
        "every:200: 0 of 1",
    ]


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
