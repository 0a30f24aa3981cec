"""From rows to curves: paired rises with the limits of both inferences, changed answers, measured values."""

import math
from dataclasses import replace

import pytest

from emtoolkit.analysis.curves import Curve, changed_curve, em_curve, measured_curve
from emtoolkit.evaluation.metrics import DEFINITIONS
from emtoolkit.evaluation.results import by_step as by_steps
from tests.analysis.evaluations import answer_rows, measure_rows

BETLEY = DEFINITIONS["betley"]


def by_step(rows: list) -> list:
    return [(step, [row for row in rows if row.step == step]) for step in sorted({row.step for row in rows})]


def scored(rows: list) -> list:
    return [(step, [row.scored() for row in of_step]) for step, of_step in by_step(rows)]


def test_a_rise_has_the_limits_that_evaluate_prints_and_is_wider_for_new_questions() -> None:
    rows = answer_rows({0: [0, 5, 10, 20], 50: [0, 10, 20, 35]})
    curve = em_curve(scored(rows), BETLEY, "rise")
    start, end = curve.new_questions
    assert (start.value, start.limits.low, start.limits.high) == (0.0, 0.0, 0.0)
    assert end.value == pytest.approx(0.15)
    printed = by_steps(rows)[1].rises["betley"]
    assert (end.limits, curve.these_questions[1].limits) == (printed.new_questions, printed.these_questions)
    these = curve.these_questions[1].limits
    assert end.limits.low <= these.low
    assert end.limits.high > these.high + 0.05
    # Four times 50 independent answers at 17.5 and 32.5 %: a little more than ±1.96 · 3.9 points.
    assert 0.06 < these.low < 0.08
    assert 0.22 < these.high < 0.24
    assert curve.by_cluster[50] == {
        "q0": 0.0,
        "q1": pytest.approx(0.1),
        "q2": pytest.approx(0.2),
        "q3": pytest.approx(0.3),
    }


def test_questions_that_all_stay_at_zero_do_not_exclude_more_than_their_number_allows() -> None:
    curve = em_curve(scored(answer_rows({0: [0] * 8, 9: [0] * 8})), BETLEY, "rise")
    assert curve.new_questions[1].limits.high == pytest.approx(0.06, abs=0.03)
    few = em_curve(scored(answer_rows({0: [0] * 3, 9: [0] * 3}, trials=1)), BETLEY, "rise")
    # Three answers exclude no rise of ten points.
    assert few.new_questions[1].limits.high > 0.3
    assert few.these_questions[1].limits.high > 0.3


def test_families_are_one_question_for_new_questions() -> None:
    rows = answer_rows({0: [0, 0, 0, 0], 9: [5, 8, 40, 45]})
    families = [replace(row, cluster="even" if row.question in ("q0", "q1") else "odd") for row in rows]
    narrow, wide = (em_curve(scored(of), BETLEY, "rise").new_questions[1] for of in (rows, families))
    assert narrow.value == wide.value == pytest.approx(0.49)
    assert wide.limits.low < narrow.limits.low


def test_a_question_without_an_answer_in_the_denominator_is_left_out_of_the_pairs() -> None:
    rows = answer_rows({0: [0, 0], 9: [25, 50]})
    left_out = [row for row in rows if (row.step, row.question) != (0, "q1")]
    assert em_curve(scored(left_out), BETLEY, "rise").new_questions[1].value == 0.5


def test_a_broken_step_has_no_value_and_is_named() -> None:
    rows = answer_rows({0: [0] * 4, 10: [40] * 4, 20: [0] * 4}, coherent={20: 10.0})
    # Among all answers the broken step would have a rate of 0.
    curve = em_curve(scored(rows), DEFINITIONS["all"], "rise")
    assert math.isnan(curve.new_questions[2].value)
    assert math.isnan(curve.new_questions[2].limits.high)
    assert curve.new_questions[1].value == pytest.approx(0.8)
    assert curve.notes == ("at steps 20 fewer than 50% of the answers are coherent: they decide nothing",)


def test_a_level_has_the_intervals_of_the_em_rate() -> None:
    curve = em_curve(scored(answer_rows({5: [0, 12, 33, 2, 21, 29, 2, 11]})), BETLEY, "level")
    (point,) = curve.new_questions
    assert point.value == 0.275
    assert (round(100 * point.limits.low, 1), round(100 * point.limits.high, 1)) == (13.3, 46.3)
    these = curve.these_questions[0].limits
    assert (round(100 * these.low, 1), round(100 * these.high, 1)) == (24.0, 31.5)


def test_changed_answers_are_counted_from_the_first_step() -> None:
    curve = changed_curve(by_step(answer_rows({0: [0, 0], 10: [5, 15], 20: [5, 15]}, trials=20)))
    assert [point.value for point in curve.new_questions] == [0.0, 0.5, 0.5]
    assert curve.new_questions[0].limits.high == 0.0
    assert curve.by_cluster[20] == {"q0": 0.25, "q1": 0.75}
    low, high = curve.these_questions[1].limits.low, curve.these_questions[1].limits.high
    assert 0.3 < low < 0.5 < high < 0.7


def test_a_measured_rise_is_exact_for_these_questions_and_has_limits_for_new_ones() -> None:
    rows = measure_rows("margin", {0: [-1.0, -2.0, None], 10: [0.0, 1.0, 5.0]})
    curve = measured_curve("margin", rows, "rise")
    assert [point.value for point in curve.new_questions] == [0.0, 2.0]
    assert curve.these_questions[1].limits.low == curve.these_questions[1].limits.high == 2.0
    # 2 ± t(1) · √2/√2.
    assert curve.new_questions[1].limits.high == pytest.approx(14.706, abs=1e-3)
    assert measured_curve("margin", rows, "level").new_questions[1].value == 2.0


def test_equal_measured_values_of_all_questions_decide_nothing_for_new_questions() -> None:
    curve = measured_curve("right", measure_rows("right", {0: [0.0, 0.0], 10: [0.0, 0.0]}), "rise")
    assert curve.new_questions[0].limits.high == 0.0
    assert math.isnan(curve.new_questions[1].limits.high)
    assert curve.these_questions[1].limits.high == 0.0


MEASURED = measure_rows("margin", {0: [-1.0, -2.0, 0.5], 10: [0.0, 1.0, 5.0], 20: [2.0, 3.0, 9.0]})
ANSWERED = [
    replace(row, cluster="even" if row.question in ("q0", "q2") else row.cluster)
    for row in answer_rows({0: [0, 5, 1, 2, 0], 10: [9, 8, 4, 0, 6], 20: [30, 40, 41, 3, 9]})
]


@pytest.mark.parametrize(
    "curve",
    [
        em_curve(scored(ANSWERED), BETLEY, "rise"),
        em_curve(scored(ANSWERED), BETLEY, "level"),
        em_curve(scored(answer_rows({0: [0] * 4, 10: [40] * 4}, coherent={10: 10.0})), BETLEY, "rise"),
        changed_curve(by_step(ANSWERED)),
        measured_curve("margin", MEASURED, "rise"),
        measured_curve("margin", MEASURED, "level"),
    ],
    ids=["rise", "level", "broken", "changed", "measured rise", "measured level"],
)
def test_every_family_drawn_once_gives_the_points_of_the_curve(curve: Curve) -> None:
    families = sorted(curve.by_cluster[0])
    for point in curve.new_questions:
        assert curve.of_families.value(point.step, families) == pytest.approx(point.value, nan_ok=True)
        limits = curve.of_families.limits(point.step, families)
        assert (limits.low, limits.high) == pytest.approx((point.limits.low, point.limits.high), nan_ok=True)


def test_a_family_that_is_drawn_twice_counts_twice() -> None:
    curve = em_curve(scored(ANSWERED), BETLEY, "rise")
    assert curve.of_families.value(20, ["q1", "q1", "q3"]) == pytest.approx((2 * 0.7 + 0.02) / 3)
    wide, narrow = (curve.of_families.limits(20, ["q1", "q3"] * times) for times in (1, 4))
    assert wide.low < narrow.low
    assert narrow.high < wide.high
