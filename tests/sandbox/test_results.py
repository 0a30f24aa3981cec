"""Rows become harmful shares by domain with intervals, and curves over steps."""

from math import isnan
from pathlib import Path

import pytest

from emtoolkit.errors import DataError
from emtoolkit.sandbox.plot import emergence_figure, save_figure
from emtoolkit.sandbox.results import (
    CheckpointShares,
    Curve,
    CurvePoint,
    curve_of_run,
    curve_over_runs,
    shares_of_checkpoints,
)
from tests.sandbox.answers import answers

DOMAINS = {"m1": "medical", "m2": "medical", "f1": "finance", "f2": "finance", "t1": "travel"}
ROWS = [
    *answers("m1", n=10, scored=10, harmful=9),
    *answers("m2", n=10, scored=8, harmful=8),
    *answers("f1", n=10, scored=10, harmful=2),
    *answers("f2", n=10, scored=5, harmful=1),
    *answers("t1", n=10, scored=5, harmful=1),
]


def test_the_denominator_is_the_scored_answers() -> None:
    (checkpoint,) = shares_of_checkpoints(ROWS, DOMAINS, "medical")
    shares = {share.domains: share for share in checkpoint.shares}
    assert list(shares) == ["medical", "finance", "travel", "all but medical"]
    finance = shares["finance"]
    assert (finance.questions, finance.n, finance.scored, finance.harmful) == (2, 20, 15, 3)
    assert finance.share == 0.2
    assert shares["all but medical"].share == checkpoint.emerged.share == 4 / 20


def test_the_question_is_the_unit_of_the_interval() -> None:
    domains = {str(index): "travel" for index in range(4)}
    few, many = (
        [row for index in range(4) for row in answers(str(index), n, scored=n, harmful=n * (index % 2))]
        for n in (10, 1000)
    )
    shares = [shares_of_checkpoints(rows, domains, "medical")[0].emerged for rows in (few, many)]
    assert [(share.share, round(share.low, 2), round(share.high, 2)) for share in shares] == [
        (0.5, 0.13, 0.87),
        (0.5, 0.12, 0.88),
    ]


def test_nothing_scored_is_not_a_share_of_zero() -> None:
    (checkpoint,) = shares_of_checkpoints(answers("t1", n=10, scored=0, harmful=0), DOMAINS, "medical")
    assert isnan(checkpoint.emerged.share)
    assert isnan(checkpoint.emerged.low)
    assert (checkpoint.coherent, checkpoint.broken) == (0.0, True)


def test_coherence_counts_every_answer_once() -> None:
    (checkpoint,) = shares_of_checkpoints(ROWS, DOMAINS, "medical")
    assert (checkpoint.coherent, checkpoint.broken) == (38 / 50, False)


def test_each_step_has_its_own_shares_in_the_order_of_the_steps() -> None:
    rows = [*answers("t1", 4, 4, 3, step=100), *answers("t1", 4, 4, 1, step=0)]
    found = shares_of_checkpoints(rows, DOMAINS, "medical")
    assert [(checkpoint.step, checkpoint.emerged.share) for checkpoint in found] == [(0, 0.25), (100, 0.75)]


def test_a_runs_curve_has_the_interval_over_questions_as_its_band() -> None:
    (checkpoint,) = shares_of_checkpoints(ROWS, DOMAINS, "medical")
    outside = checkpoint.emerged
    assert curve_of_run("goodness", [checkpoint]) == Curve("goodness", (CurvePoint(0, 0.2, outside.low, outside.high),))


def test_a_curve_over_runs_is_the_mean_in_the_band_of_the_lowest_and_the_highest_run() -> None:
    def run(*harmful: int) -> list[CheckpointShares]:
        rows = [row for step, count in enumerate(harmful) for row in answers("t1", 4, 4, count, step=step)]
        return shares_of_checkpoints(rows, DOMAINS, "medical")

    curve = curve_over_runs("goodness", [run(0, 2), run(1, 4), run(2, 3)])
    assert curve.points == (CurvePoint(0, 0.25, 0.0, 0.5), CurvePoint(1, 0.75, 0.5, 1.0))


def test_runs_with_different_steps_have_no_common_curve() -> None:
    runs = [shares_of_checkpoints(answers("t1", 4, 4, 1, step=step), DOMAINS, "medical") for step in (0, 1)]
    with pytest.raises(ValueError, match="too many values"):
        curve_over_runs("goodness", runs)


def test_a_figure_has_a_line_and_a_label_for_each_curve_with_points(tmp_path: Path) -> None:
    drawn = Curve("goodness", (CurvePoint(0, 0.1, 0.0, 0.2), CurvePoint(100, 0.9, 0.8, 1.0)))
    figure = emergence_figure([drawn, Curve("sarcasm", ())], "medical")
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.1, 0.9]]
    assert [text.get_text() for text in axes.texts] == ["goodness"]
    save_figure(figure, tmp_path / "figures" / "curve.png")
    assert (tmp_path / "figures" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_seventh_curve_has_another_line_than_the_first() -> None:
    curves = [Curve(str(i), (CurvePoint(0, 0.1, 0.0, 0.2),)) for i in range(7)]
    (axes,) = emergence_figure(curves, "medical").axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 7


def test_a_figure_without_points_is_refused() -> None:
    with pytest.raises(DataError, match="no evaluated checkpoints"):
        emergence_figure([Curve("sarcasm", ())], "medical")
