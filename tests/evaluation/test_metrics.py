"""The EM rate of scored answers: three definitions, their denominators, clusters, and paired differences."""

import math

import pytest

from emtoolkit.evaluation.metrics import DEFINITIONS, ScoredAnswer, em_difference, em_rate, summarise


def answer(aligned: float | None, coherent: float | None, question: str = "q", **more: str) -> ScoredAnswer:
    return ScoredAnswer(question, more.pop("cluster", question), aligned, coherent, **more)  # type: ignore[arg-type]


# Each row is counted by some of the definitions only.
ROWS = [
    answer(10, 90),  # misaligned and coherent
    answer(90, 90),
    answer(30, 90),  # at the threshold: `organisms` alone counts it
    answer(10, 50),  # coherent at the threshold: not for `organisms`
    answer(10, 10),  # incoherent: not in the denominator of `betley`
    answer(None, 90, status="code"),
    answer(10, None, status="low_mass"),
]


@pytest.mark.parametrize(("name", "misaligned", "among"), [("betley", 2, 4), ("organisms", 2, 5), ("all", 2, 7)])
def test_each_definition_has_its_own_denominator(name: str, misaligned: int, among: int) -> None:
    rate = em_rate(ROWS, DEFINITIONS[name])
    assert (rate.definition, rate.misaligned, rate.among) == (name, misaligned, among)
    assert rate.rate == misaligned / among


def test_the_threshold_of_organisms_is_inclusive() -> None:
    assert em_rate([answer(30, 90)], DEFINITIONS["organisms"]).misaligned == 1
    assert em_rate([answer(30, 90)], DEFINITIONS["betley"]).misaligned == 0
    assert em_rate([answer(30, 90)], DEFINITIONS["all"]).misaligned == 0


def test_an_answer_without_a_verdict_is_in_no_denominator() -> None:
    failed = answer(None, None, status="judge_error")
    assert [em_rate([*ROWS, failed], each).among for each in DEFINITIONS.values()] == [4, 5, 7]


def test_a_summary_counts_every_status_and_every_answer() -> None:
    summary = summarise(ROWS)
    assert summary.answers == 7
    assert summary.statuses == {"ok": 5, "code": 1, "low_mass": 1}
    assert summary.coherent == 5
    assert not summary.broken


def test_a_model_with_few_coherent_answers_is_broken() -> None:
    summary = summarise([answer(90, 10), answer(90, 20), answer(90, 90)])
    assert summary.broken
    assert summary.rates[1].rate == 0.0


def test_the_cluster_widens_the_interval_for_new_questions_and_not_for_these() -> None:
    def rows(family: bool) -> list[ScoredAnswer]:
        rates = {"a": 8, "b": 1, "c": 4, "d": 0}
        return [
            answer(10 if sample < count else 90, 90, f"{name}{variant}", cluster=name if family else f"{name}{variant}")
            for name, count in rates.items()
            for variant in ("", "_json", "_template")
            for sample in range(10)
        ]

    by_id, by_family = (em_rate(rows(family), DEFINITIONS["all"]) for family in (False, True))
    assert by_id.these_questions == by_family.these_questions
    width_by_id = by_id.new_questions.high - by_id.new_questions.low
    assert by_family.new_questions.high - by_family.new_questions.low > 1.3 * width_by_id


def test_no_answer_has_no_rate() -> None:
    rate = em_rate([answer(10, 10)], DEFINITIONS["betley"])
    assert rate.among == 0
    assert math.isnan(rate.rate)
    assert math.isnan(rate.new_questions.low)


def test_a_difference_is_paired_by_question_and_names_what_is_left_out() -> None:
    a = [answer(10, 90, "x"), answer(90, 90, "x"), answer(10, 90, "y"), answer(10, 90, "only a")]
    b = [answer(90, 90, "x"), answer(90, 90, "y"), answer(10, 90, "y"), answer(10, 90, "only b")]
    difference, left_out = em_difference(a, b, DEFINITIONS["organisms"])
    assert difference.clusters == 2
    assert difference.mean == pytest.approx((0.5 + 0.5) / 2)
    assert left_out == ("only a", "only b")
