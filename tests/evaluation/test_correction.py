"""EM rates corrected for the errors of a judge: the paper's formula, and coverage in simulation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from emtoolkit.errors import DataError
from emtoolkit.evaluation.correction import JudgeErrors, LabelledAnswer, corrected_rate, judge_errors
from emtoolkit.evaluation.intervals import Counts, Interval, posterior_interval, same_questions_interval
from emtoolkit.evaluation.metrics import DEFINITIONS, EmRate, ScoredAnswer
from tests.in_process import emtoolkit


def rate_of(counts: Counts) -> EmRate:
    new, these = posterior_interval(counts), same_questions_interval(counts)
    x, n = sum(counts.successes), sum(counts.trials)
    return EmRate("betley", x, n, counts.share, new, Interval.none(), these)


def test_the_rate_is_the_inverse_of_what_the_judge_reports() -> None:
    # A rate of 0.3 is reported as 0.9 * 0.3 + 0.2 * 0.7 = 0.41.
    found = corrected_rate(rate_of(Counts([41], [100])), JudgeErrors(80, 100, 90, 100))
    assert (found.rate, found.uncut) == (pytest.approx(0.3), pytest.approx(0.3))
    assert found.errors.specificity == 0.8
    below = corrected_rate(rate_of(Counts([10], [100])), JudgeErrors(80, 100, 90, 100))
    assert (below.rate, below.uncut) == (0.0, pytest.approx(-0.1 / 0.7))
    assert below.new_questions.low == 0.0


def test_a_judge_without_errors_on_many_labels_changes_nothing() -> None:
    rate = rate_of(Counts([10, 4, 0, 6], [20] * 4))
    found = corrected_rate(rate, JudgeErrors(10**9, 10**9, 10**9, 10**9))
    assert found.rate == pytest.approx(rate.rate)
    for corrected, plain in ((found.new_questions, rate.new_questions), (found.these_questions, rate.these_questions)):
        assert (corrected.low, corrected.high) == (pytest.approx(plain.low), pytest.approx(plain.high))


def test_labels_that_do_not_exclude_chance_allow_every_rate() -> None:
    found = corrected_rate(rate_of(Counts([10, 4], [20, 20])), JudgeErrors(3, 5, 3, 5))
    assert (found.new_questions.low, found.new_questions.high) == (0.0, 1.0)
    assert math.isnan(corrected_rate(rate_of(Counts([], [])), JudgeErrors(9, 9, 9, 9)).new_questions.low)


@pytest.mark.parametrize(("mean", "q0", "q1", "labels"), [(0.2, 0.9, 0.7, 60), (0.05, 0.97, 0.9, 90)])
def test_the_intervals_cover_the_true_rate(mean: float, q0: float, q1: float, labels: int) -> None:
    rng = np.random.default_rng(0)
    new = these = naive = 0
    repeats, questions = 100, 24
    for _ in range(repeats):
        rates = rng.beta(mean * 3, (1 - mean) * 3, questions)
        misaligned = rng.binomial(20, rates)
        said = rng.binomial(misaligned, q1) + rng.binomial(20 - misaligned, 1 - q0)
        errors = JudgeErrors(int(rng.binomial(labels, q0)), labels, int(rng.binomial(labels, q1)), labels)
        plain = rate_of(Counts(said.tolist(), [20] * questions))
        found = corrected_rate(plain, errors)
        new += found.new_questions.low <= mean <= found.new_questions.high
        these += found.these_questions.low <= rates.mean() <= found.these_questions.high
        naive += plain.these_questions.low <= rates.mean() <= plain.these_questions.high
    assert new / repeats >= 0.91
    assert these / repeats >= 0.92
    assert naive / repeats < 0.8


def labelled(*rows: tuple[float, float, bool]) -> list[LabelledAnswer]:
    return [LabelledAnswer(ScoredAnswer("q", "q", a, c), misaligned) for a, c, misaligned in rows]


def test_errors_are_those_among_the_answers_of_the_definition() -> None:
    answers = labelled((10, 90, True), (90, 90, True), (10, 10, True), (90, 90, False), (30, 90, False))
    assert judge_errors(answers, DEFINITIONS["betley"]) == JudgeErrors(2, 2, 1, 2)
    assert judge_errors(answers, DEFINITIONS["all"]) == JudgeErrors(2, 2, 1, 3)
    more = [*answers, *labelled((10, 90, True), (10, 90, True))]
    assert judge_errors(more, DEFINITIONS["organisms"]) == JudgeErrors(1, 2, 3, 5)


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        (labelled((10, 90, True)), "no aligned answer is among the 1 labelled answers in the denominator of betley"),
        (labelled((10, 90, False), (10, 10, True)), "no misaligned answer is among the 1 labelled answers"),
        (labelled((10, 90, False), (90, 90, True)), "calls 0% of the misaligned and 100% of the aligned answers"),
    ],
)
def test_labels_that_allow_no_correction_are_refused(answers: list[LabelledAnswer], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        judge_errors(answers, DEFINITIONS["betley"])


def test_the_command_corrects_the_rates_and_refuses_wrong_labels(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question_id,aligned,coherent\n" + "a,10,90\n" * 41 + "b,90,90\n" * 59)
    head, rows = "question_id,aligned,coherent,misaligned\n", ["a,10,90,1\n"] * 90 + ["a,90,90,1\n"] * 10
    rows += ["a,90,90,0\n"] * 80 + ["a,10,90,0\n"] * 20
    (tmp_path / "l.csv").write_text(head + "".join(rows))
    done = emtoolkit("metrics", "a.csv", "--labels", "l.csv", "--json", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    corrected = json.loads(done.out)["corrected"]
    assert [round(each["rate"], 6) for each in corrected] == [0.3] * 3
    assert (corrected[0]["specificity"], corrected[0]["sensitivity"]) == (0.8, 0.9)
    text = emtoolkit("metrics", "a.csv", "--labels", "l.csv", cwd=tmp_path).out
    assert "30.00" in text
    assert "80 of 100" in text
    (tmp_path / "word.csv").write_text(head + "a,10,90,perhaps\n")
    (tmp_path / "judge.csv").write_text("judge," + head + "m@1,a,10,90,1\n")
    (tmp_path / "mine.csv").write_text("judge,question_id,aligned,coherent\nm@2,a,10,90\n")
    for words, sentence in (
        (("a.csv", "--labels", "a.csv"), "no column 'misaligned'"),
        (("a.csv", "--labels", "word.csv"), "line 2: misaligned: 'perhaps' is not a label; expected one of 1, 0, true"),
        (("mine.csv", "--labels", "judge.csv"), "--labels judge.csv: has another judge (m@1 and m@2)"),
    ):
        refused = emtoolkit("metrics", *words, cwd=tmp_path)
        assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
        assert sentence in refused.err
