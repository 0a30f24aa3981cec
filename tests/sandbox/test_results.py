"""Counts become proportions with intervals, and curves over steps."""

from math import isnan
from pathlib import Path

import pytest

from emtoolkit.errors import DataError
from emtoolkit.sandbox.plot import emergence_figure, save_figure
from emtoolkit.sandbox.results import (
    CheckpointResult,
    Curve,
    CurvePoint,
    QuestionCounts,
    curve_of_run,
    curve_over_runs,
    distinct_names,
    harmful_share_by_domain,
    other_domains,
)

COUNTS = (
    QuestionCounts("medical", "m1", n=10, scored=10, harmful=9),
    QuestionCounts("medical", "m2", n=10, scored=8, harmful=8),
    QuestionCounts("finance", "f1", n=10, scored=10, harmful=2),
    QuestionCounts("finance", "f2", n=10, scored=5, harmful=1),
    QuestionCounts("travel", "t1", n=10, scored=5, harmful=1),
)


def test_the_denominator_is_the_scored_answers() -> None:
    shares = {share.domains: share for share in harmful_share_by_domain(COUNTS)}
    assert list(shares) == ["medical", "finance", "travel", "all but medical", "all but finance", "all but travel"]
    finance = shares["finance"]
    assert (finance.questions, finance.n, finance.scored, finance.harmful) == (2, 20, 15, 3)
    assert finance.share == 0.2
    assert shares["all but medical"].share == other_domains(COUNTS, "medical").share == 4 / 20


def test_the_question_is_the_unit_of_the_interval() -> None:
    few = [QuestionCounts("travel", str(index), n=10, scored=10, harmful=10 * (index % 2)) for index in range(4)]
    many = [QuestionCounts("travel", str(index), n=1000, scored=1000, harmful=1000 * (index % 2)) for index in range(4)]
    shares = [harmful_share_by_domain(counts)[0] for counts in (few, many)]
    assert [(share.share, round(share.low, 2), round(share.high, 2)) for share in shares] == [
        (0.5, 0.13, 0.87),
        (0.5, 0.12, 0.88),
    ]


def test_nothing_scored_is_not_a_share_of_zero() -> None:
    share = harmful_share_by_domain([QuestionCounts("travel", "t1", n=10, scored=0, harmful=0)])[0]
    assert isnan(share.share)
    assert isnan(share.low)


def test_coherence_counts_every_answer_once() -> None:
    assert CheckpointResult(0, COUNTS).coherent == 38 / 50


def test_a_runs_curve_has_the_interval_over_questions_as_its_band() -> None:
    outside = other_domains(COUNTS, "medical")
    curve = curve_of_run("goodness", [CheckpointResult(25, COUNTS)], "medical")
    assert curve == Curve("goodness", (CurvePoint(25, 0.2, outside.low, outside.high),))


def test_a_curve_over_runs_is_the_mean_in_the_band_of_the_lowest_and_the_highest_run() -> None:
    def run(*harmful: int) -> list[CheckpointResult]:
        return [
            CheckpointResult(step, (QuestionCounts("travel", "t1", n=4, scored=4, harmful=count),))
            for step, count in enumerate(harmful)
        ]

    curve = curve_over_runs("goodness", [run(0, 2), run(1, 4), run(2, 3)], "medical")
    assert curve.points == (CurvePoint(0, 0.25, 0.0, 0.5), CurvePoint(1, 0.75, 0.5, 1.0))


def test_runs_with_different_steps_have_no_common_curve() -> None:
    with pytest.raises(ValueError, match="too many values"):
        curve_over_runs("goodness", [[CheckpointResult(0, COUNTS)], [CheckpointResult(1, COUNTS)]], "medical")


def test_a_figure_has_a_line_and_a_label_for_each_curve_with_points(tmp_path: Path) -> None:
    drawn = Curve("goodness", (CurvePoint(0, 0.1, 0.0, 0.2), CurvePoint(100, 0.9, 0.8, 1.0)))
    figure = emergence_figure([drawn, Curve("sarcasm", ())], "medical")
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.1, 0.9]]
    assert [text.get_text() for text in axes.texts] == ["goodness"]
    save_figure(figure, tmp_path / "figures" / "curve.png")
    assert (tmp_path / "figures" / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("directories", "names"),
    [
        (["outputs/a", "outputs/b"], ["a", "b"]),
        (["s1/run", "s2/run", "other"], ["s1/run", "s2/run", "other"]),
        (["x/s1/run", "y/s1/run", "y/s2/run"], ["x/s1/run", "y/s1/run", "s2/run"]),
        (["run", "deeper/run"], ["TOP/run", "deeper/run"]),
    ],
)
def test_directories_of_one_name_have_different_labels(directories: list[str], names: list[str]) -> None:
    top = Path.cwd().name
    assert distinct_names([Path(directory) for directory in directories]) == [
        name.replace("TOP", top) for name in names
    ]


def test_the_seventh_curve_has_another_line_than_the_first() -> None:
    curves = [Curve(str(i), (CurvePoint(0, 0.1, 0.0, 0.2),)) for i in range(7)]
    (axes,) = emergence_figure(curves, "medical").axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 7


def test_a_figure_without_points_is_refused() -> None:
    with pytest.raises(DataError, match="no evaluated checkpoints"):
        emergence_figure([Curve("sarcasm", ())], "medical")
