"""Differences of rates: paired by question, crossed with seeds, with a width where nothing differs."""

import math

import pytest
from scipy.stats import t

from emtoolkit.evaluation.differences import RateDifference, rate_difference
from emtoolkit.evaluation.intervals import Counts, Interval
from emtoolkit.evaluation.metrics import DEFINITIONS, ScoredAnswer, em_difference, em_difference_of_seeds

# Published answers of rank 1 and rank 8 to eight questions, 50 each.
RANK_1, RANK_8 = ([0, 12, 33, 2, 21, 29, 2, 11], [1, 4, 23, 4, 17, 20, 1, 4])


def of_50(successes: list[int]) -> Counts:
    return Counts(successes, [50] * len(successes))


def difference(a: list[int], b: list[int]) -> RateDifference:
    return rate_difference([of_50(a)], [of_50(b)])


def half_width(interval: Interval) -> float:
    return (interval.high - interval.low) / 2


def test_the_published_difference_has_its_published_t_interval() -> None:
    found = difference(RANK_1, RANK_8)
    assert round(100 * found.mean, 2) == 9.00
    assert round(100 * half_width(found.new_questions_t), 2) == 7.84
    assert found.degrees == 7


def test_pairing_narrows_the_interval_where_the_questions_agree() -> None:
    paired, shuffled = difference(RANK_1, RANK_8), difference(RANK_1, RANK_8[::-1])
    assert half_width(paired.new_questions) < 0.7 * half_width(shuffled.new_questions)
    assert half_width(paired.new_questions_t) < 0.7 * half_width(shuffled.new_questions_t)


def test_no_misaligned_answer_on_either_side_is_not_certainty() -> None:
    found = difference([0] * 8, [0] * 8)
    assert found.mean == 0
    assert round(found.new_questions.high, 3) == 0.060
    assert round(found.these_questions.high, 4) == 0.0092
    assert found.new_questions.low == -found.new_questions.high


def test_a_rise_from_nothing_is_as_uncertain_upwards_as_the_rate() -> None:
    found = difference([1, 0, 0, 0, 3, 0, 0, 0], [0] * 8)
    assert found.new_questions.high > 2 * found.new_questions_t.high
    assert found.new_questions.low < found.mean < found.new_questions.high


def test_questions_that_all_rise_by_the_same_leave_the_noise_of_their_answers() -> None:
    for found in (difference([20, 25, 30, 35], [10, 15, 20, 25]), difference([30] * 8, [20] * 8)):
        assert found.mean == pytest.approx(0.2)
        assert found.new_questions.low <= found.these_questions.low < 0.14
        assert found.new_questions.high >= found.these_questions.high > 0.26
        assert math.isnan(found.new_questions_t.low)
        assert math.isnan(found.degrees)


def test_the_interval_never_leaves_the_scale() -> None:
    found = difference([50, 50, 50], [0, 0, 0])
    assert (found.mean, found.new_questions.high, found.these_questions.high) == (1, 1, 1)
    assert 0 < found.new_questions.low < 1


def test_crossed_seeds_agree_with_the_mean_squares_by_hand() -> None:
    # Rates of 3 seeds at 2 questions against a constant 0: seed means .2, .3, .7, question means .3, .5.
    # s²_d = .02, MS_s = 2 · var(.2, .3, .7) = .14, residuals ∓.1, 0, ±.1 in both questions: MS_qs = .04/2 = .02.
    # Var = .02/2 + (.14 - .02)/6 = .03; degrees = .03² / (.01²/1 + (.14/6)²/2 + (.02/6)²/2).
    a = [Counts([2, 2], [10, 10]), Counts([2, 4], [10, 10]), Counts([5, 9], [10, 10])]
    found = rate_difference(a, [Counts([0, 0], [10, 10])] * 3)
    assert (found.seeds, found.models) == ("new", (3, 3))
    assert found.mean == pytest.approx(0.4)
    assert found.degrees == pytest.approx(2.382353)
    assert half_width(found.new_questions_t) == pytest.approx(float(t.ppf(0.975, 2.382353)) * 0.03**0.5)


def test_seeds_that_differ_widen_every_interval_and_equal_seeds_do_not() -> None:
    equal = rate_difference([of_50(RANK_1)] * 3, [of_50(RANK_8)] * 3)
    spread = [of_50([min(50, x + more) for x in RANK_1]) for more in (-0, 8, 16)]
    differing = rate_difference(spread, [of_50(RANK_8)] * 3)
    for name in ("new_questions", "new_questions_t", "these_questions"):
        assert half_width(getattr(differing, name)) > half_width(getattr(equal, name))
    assert equal.degrees == 7


def test_two_seeds_say_nothing_about_new_seeds() -> None:
    found = rate_difference([of_50(RANK_1)] * 2, [of_50(RANK_8)] * 3)
    assert (found.seeds, found.models) == ("these", (2, 3))


def test_one_cluster_has_a_difference_and_no_interval_for_new_questions() -> None:
    found = difference([10], [5])
    assert found.mean == pytest.approx(0.1)
    assert math.isnan(found.new_questions.low)
    assert math.isnan(found.new_questions_t.low)
    assert found.these_questions.low < 0.1 < found.these_questions.high


def test_no_shared_cluster_has_no_difference() -> None:
    one = [ScoredAnswer("a", "a", 10, 90)]
    other = [ScoredAnswer("b", "b", 10, 90)]
    found, left_out = em_difference(one, other, DEFINITIONS["all"])
    assert math.isnan(found.mean)
    assert left_out == ("a", "b")


def test_a_cluster_that_one_seed_lacks_is_left_out_and_named() -> None:
    full = [ScoredAnswer(name, name, 10, 90) for name in "ab"]
    found, left_out = em_difference_of_seeds([full, full[:1], full], [full] * 3, DEFINITIONS["all"])
    assert (found.clusters, left_out) == (1, ("b",))


def test_clusters_widen_the_interval_for_new_questions_and_not_for_these() -> None:
    def rows(misaligned: list[int], family: bool) -> list[ScoredAnswer]:
        return [
            ScoredAnswer(f"{q}{v}", str(q) if family else f"{q}{v}", 10 if i < count else 90, 90)
            for q, count in enumerate(misaligned)
            for v in ("", "_json", "_template")
            for i in range(50)
        ]

    by_id, by_family = (
        em_difference(rows(RANK_1, family), rows(RANK_8, family), DEFINITIONS["all"])[0] for family in (False, True)
    )
    assert by_id.these_questions.low == pytest.approx(by_family.these_questions.low)
    assert half_width(by_family.new_questions_t) > 1.5 * half_width(by_id.new_questions_t)


def test_models_with_other_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match="every model needs answers in every cluster"):
        rate_difference([Counts([1], [2])], [Counts([1, 1], [2, 2])])
