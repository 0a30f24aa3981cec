"""Intervals of rates over questions: the figures that were worked out elsewhere, and the ends of the scale."""

import math

import pytest

from emtoolkit.evaluation.intervals import (
    Counts,
    logit_t_interval,
    paired_difference,
    posterior_interval,
    same_questions_interval,
)

# The misaligned answers among 50 to each of eight questions.
EIGHT = Counts([10, 2, 0, 15, 20, 1, 12, 14], [50] * 8)


def test_no_success_in_400_is_at_most_6_percent_for_new_and_0_9_for_these_questions() -> None:
    none = Counts([0] * 8, [50] * 8)
    new, these = posterior_interval(none), same_questions_interval(none)
    assert (new.low, these.low) == (0.0, 0.0)
    assert round(new.high, 3) == 0.060
    assert round(these.high, 4) == 0.0092


def test_all_successes_mirror_no_success() -> None:
    none, every = Counts([0] * 8, [50] * 8), Counts([50] * 8, [50] * 8)
    assert posterior_interval(every).high == 1.0
    assert posterior_interval(every).low == pytest.approx(1 - posterior_interval(none).high, abs=1e-9)
    assert same_questions_interval(every).low == pytest.approx(1 - same_questions_interval(none).high, abs=1e-12)


def test_the_interval_for_new_questions_is_several_times_as_wide_as_for_these() -> None:
    new, these = posterior_interval(EIGHT), same_questions_interval(EIGHT)
    assert new.low < these.low < EIGHT.share < these.high < new.high
    assert (new.high - new.low) / (these.high - these.low) > 3


def test_these_questions_agree_with_the_formula_by_hand() -> None:
    # Two questions of 10 answers, 2 and 5 successes: SE² = (0.2·0.8/9 + 0.5·0.5/9) / 4 = 0.0113889, p = 0.35,
    # logit(7.5/13.5) = -0.587787, half = 1.959964 · 0.106719 / 0.2275 = 0.919397.
    interval = same_questions_interval(Counts([2, 5], [10, 10]))
    assert interval.low == pytest.approx(0.181399, abs=2e-4)
    assert interval.high == pytest.approx(0.582197, abs=2e-4)


def test_logit_t_agrees_with_the_formula_by_hand() -> None:
    # Three clusters of 10, 2, 5 and 3 successes: p = 1/3, SE² = 3/2 · (1.7778 + 2.7778 + 0.1111) / 900 = 0.0077778,
    # logit(10.5/20.5) = -0.669050, half = 4.302653 · 0.0881917 / 0.2222222 = 1.707568.
    interval = logit_t_interval(Counts([2, 5, 3], [10, 10, 10]))
    assert interval.low == pytest.approx(1 / (1 + math.exp(0.669050 + 1.707568)), abs=1e-5)
    assert interval.high == pytest.approx(1 / (1 + math.exp(0.669050 - 1.707568)), abs=1e-5)


def test_questions_without_answers_change_nothing() -> None:
    with_empty = Counts([*EIGHT.successes, 0], [*EIGHT.trials, 0])
    assert posterior_interval(with_empty) == posterior_interval(EIGHT)
    assert logit_t_interval(with_empty) == logit_t_interval(EIGHT)
    assert same_questions_interval(with_empty) == same_questions_interval(EIGHT)


def test_the_order_of_the_questions_changes_nothing() -> None:
    turned = Counts(EIGHT.successes[::-1], EIGHT.trials)
    assert posterior_interval(turned) == posterior_interval(EIGHT)


@pytest.mark.parametrize("interval", [posterior_interval, logit_t_interval, same_questions_interval])
def test_no_answer_has_no_interval(interval: object) -> None:
    assert callable(interval)
    assert math.isnan(interval(Counts([], [])).low)
    assert math.isnan(interval(Counts([0, 0], [0, 0])).high)


def test_questions_whose_answers_all_agree_still_have_a_width() -> None:
    interval = same_questions_interval(Counts([10, 0], [10, 10]))
    assert interval.low < 0.5 < interval.high
    assert interval.high - interval.low > 0.3


def test_one_answer_to_each_question_has_a_width() -> None:
    interval = same_questions_interval(Counts([1, 0, 0, 1], [1, 1, 1, 1]))
    assert interval.low < 0.5 < interval.high


def test_more_successes_than_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="3 successes in 2 trials"):
        Counts([3], [2])


def test_a_paired_difference_has_the_t_interval_of_its_questions() -> None:
    # d = 1, 2, 3, 4: mean 2.5, s = 1.290994, t(3) = 3.182446, half = 3.182446 · 1.290994 / 2 = 2.054260.
    difference = paired_difference([1, 2, 3, 4])
    assert (difference.mean, difference.questions) == (2.5, 4)
    assert difference.half_width == pytest.approx(2.054260, abs=1e-5)


def test_one_question_has_a_difference_and_no_interval() -> None:
    difference = paired_difference([0.25])
    assert difference.mean == 0.25
    assert math.isnan(difference.interval.low)


def test_the_posterior_covers_the_rate_of_new_questions_in_simulation() -> None:
    """A small part of `python -m benchmarks.coverage`: 200 sets of eight questions with a correlation of 0.25."""
    import numpy as np

    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        rates = rng.beta(0.05 * 3, 0.95 * 3, 8)
        interval = posterior_interval(Counts(rng.binomial(50, rates).tolist(), [50] * 8))
        held += interval.low <= 0.05 <= interval.high
    assert 0.92 <= held / 200 <= 0.99
