"""The power of an evaluation before it is made: published chances of no onset, and more questions for more answers."""

import numpy as np
import pytest

from emtoolkit.evaluation.differences import rate_difference
from emtoolkit.evaluation.intervals import Counts, posterior_interval, posterior_intervals
from emtoolkit.evaluation.power import Design, _rise, detection, power
from emtoolkit.evaluation.questions import Question


@pytest.mark.parametrize(("questions", "no_onset"), [(8, 0.46), (16, 0.17), (24, 0.06), (50, 0.0)])
def test_the_chances_of_no_onset_are_those_that_were_worked_out_elsewhere(questions: int, no_onset: float) -> None:
    """At a true rate of 20 % and a threshold of 10 %, with 50 answers to each question."""
    found = power(Design.even(questions, 50), 0.1, 0.2).rate_new_questions.no_onset
    assert found == pytest.approx(no_onset, abs=0.04)


def test_more_questions_narrow_the_interval_for_new_questions_only() -> None:
    found = detection(Design.even(8, 50), 0.1, replicates=200)
    designs = [(len(each.design.answers), each.design.answers[0]) for each in (found.power, *found.alternatives)]
    assert designs == [(8, 50), (24, 16), (40, 10), (50, 8)]
    new = [100 * each.rate_new_questions.half_width for each in (found.power, *found.alternatives)]
    these = [100 * each.rate_these_questions.half_width for each in (found.power, *found.alternatives)]
    assert new == pytest.approx([13, 8, 6.5, 6], abs=0.7)
    assert these == pytest.approx([3.5] * 4, abs=0.2)


def test_the_same_arguments_give_the_same_result() -> None:
    one, other = (detection(Design.even(8, 10), 0.1, replicates=100) for _ in range(2))
    assert one == other


def test_many_replicates_at_once_have_the_interval_of_each() -> None:
    rng = np.random.default_rng(0)
    trials = (5, 50, 50, 7)
    successes = np.array([*rng.binomial(trials, 0.2, (5, 4)), [0, 0, 0, 0], trials])
    together = posterior_intervals(successes, trials)
    for ends, row in zip(together, successes, strict=True):
        alone = posterior_interval(Counts(row.tolist(), trials))
        assert tuple(ends) == pytest.approx((alone.low, alone.high), abs=1e-9)


def test_the_rise_is_the_difference_from_a_step_without_misaligned_answers() -> None:
    x, trials = [10, 2, 0, 15], (50, 50, 50, 50)
    expected = rate_difference([Counts(x, trials)], [Counts([0] * 4, trials)]).new_questions
    ends = posterior_intervals(np.array([x]), trials)
    (found,) = _rise(np.array([27 / 200]), ends, posterior_interval(Counts([0] * 4, trials)))
    assert tuple(found) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_variants_of_a_question_and_its_wordings_are_one_question_of_the_design() -> None:
    questions = [
        Question("buck", ("a", "b"), samples_per_paraphrase=5),
        Question("buck_json", ("a",), samples_per_paraphrase=5),
        Question("ruler", ("a",), samples_per_paraphrase=3),
    ]
    assert Design.of(questions) == Design((15, 3))


def test_a_design_of_many_questions_is_compared_with_twice_as_many() -> None:
    assert Design.even(50, 8).alternatives() == (Design.even(100, 4),)
    assert Design.even(30, 1).alternatives() == ()


def test_a_rate_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        power(Design.even(8, 50), 10, 20)
