"""Drift of a judge on frozen answers: what is a shift, what is not, and what is the reference."""

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest

from emtoolkit.errors import DataError
from emtoolkit.evaluation.calibration import CalibrationSession, calibrate, read_calibration, shifts_between
from emtoolkit.evaluation.judges import JudgedAnswer, JudgeStoppedError, Verdict
from emtoolkit.evaluation.judging import judge_id
from emtoolkit.evaluation.questions import Question
from emtoolkit.evaluation.row_files import write_file_rows
from emtoolkit.evaluation.store import Store


class Changing:
    """Gives the verdicts in `verdicts`, as a hosted model that is replaced behind its name."""

    name = "hosted"

    def __init__(self, verdicts: Sequence[Verdict], answered_as: str = "hosted-1") -> None:
        self.settings = {"version": 1}
        self.verdicts, self.answered_as, self.seen = list(verdicts), {answered_as}, list[JudgedAnswer]()

    def judge(self, answers: Sequence[JudgedAnswer]) -> Sequence[Verdict]:
        self.seen += answers
        return self.verdicts[: len(answers)]


def scores(*aligned: float | None, coherent: float = 90.0) -> list[Verdict]:
    return [Verdict("ok" if each is not None else "refusal", each, coherent) for each in aligned]


BEFORE = scores(*[10.0] * 10, *[60.0 + i / 10 for i in range(30)])


@pytest.fixture
def frozen(tmp_path: Path) -> Path:
    path = tmp_path / "frozen.jsonl"
    write_file_rows(path, [{"question": f"question {i % 4}?", "answer": f"answer {i}"} for i in range(len(BEFORE))])
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", "calibrations")


def session(path: Path, store: Store, judge: Changing, day: int) -> CalibrationSession:
    return calibrate(read_calibration(path, judge), judge, store, today=date(2026, 11, day))


def test_the_first_session_is_the_reference_and_each_session_asks_anew(frozen: Path, store: Store) -> None:
    first = session(frozen, store, judge := Changing(BEFORE), 1)
    assert (first.reference, first.shifts, first.notes) == (None, {}, ())
    again = session(frozen, store, judge, 9)
    assert len(judge.seen) == 80
    assert (again.reference, again.notes) == ("its session of 2026-11-01", ())
    assert {(shift.difference.mean, shift.difference.interval.high) for shift in again.shifts.values()} == {(0.0, 0.0)}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        # The mean moves by 6 points, and no answer crosses the threshold.
        (scores(*[16.0] * 10, *[66.0 + i / 10 for i in range(30)]), ["mean alignment +6.0 points (+6.0 to +6.0)"]),
        # Answers cross the threshold while the mean stays: eight down by 35 points, the others up.
        (
            scores(*[10.0] * 10, *[25.0] * 8, *[73.3 + i / 10 for i in range(22)]),
            ["EM rate (betley) +20.0 points (+7.0 to +33.0)", "EM rate (organisms)", "20 % of the answers count"],
        ),
        # As many answers cross it in both directions: neither mean nor rate moves.
        (
            scores(*[60.0] * 4, *[10.0] * 6, *[10.0] * 4, *[60.0 + i / 10 for i in range(4, 30)]),
            ["20 % of the answers count otherwise"],
        ),
        (scores(*[None] * 40), ["0 % of the answers have a score, 100 % had one"]),
        (
            [Verdict("ok", v.aligned, 40.0) for v in BEFORE],
            ["mean coherence -50.0 points", "EM rate (all) -25.0 points"],
        ),
    ],
)
def test_a_changed_judge_is_a_warning(frozen: Path, store: Store, now: list[Verdict], said: list[str]) -> None:
    session(frozen, store, Changing(BEFORE), 1)
    found = session(frozen, store, Changing(now), 9)
    (note,) = found.notes
    assert note.startswith(f"judge hosted@{judge_id(Changing(now))[-8:]} differs from its session of 2026-11-01 on the")
    for part in said:
        assert part in note
    # The reference stays the first session.
    assert session(frozen, store, Changing(BEFORE), 10).notes == ()


@pytest.mark.parametrize(
    "now",
    [
        scores(*[v.aligned + (-1) ** i * 3 for i, v in enumerate(BEFORE) if v.aligned is not None]),
        scores(*[v.aligned + 0.01 for v in BEFORE if v.aligned is not None]),
        [*scores(60.0), *BEFORE[1:]],
    ],
)
def test_noise_rounding_and_one_answer_are_none(frozen: Path, store: Store, now: list[Verdict]) -> None:
    session(frozen, store, Changing(BEFORE), 1)
    assert session(frozen, store, Changing(now), 9).notes == ()


def test_a_mean_and_a_rate_are_over_the_answers_of_both_sessions() -> None:
    shifts = shifts_between(scores(10.0, 90.0, None, 20.0), scores(40.0, 90.0, 0.0, None))
    assert (shifts["aligned"].before, shifts["aligned"].now) == (50.0, 65.0)
    assert (shifts["betley"].before, shifts["betley"].now, shifts["betley"].difference.questions) == (0.5, 0.0, 2)
    assert (shifts["all"].before, shifts["all"].now) == (0.5, 0.25)
    assert (shifts["scored"].before, shifts["scored"].now) == (0.75, 0.75)


def test_another_model_behind_the_name_is_said(frozen: Path, store: Store) -> None:
    session(frozen, store, Changing(BEFORE, "hosted-1"), 1)
    (note,) = session(frozen, store, Changing(BEFORE, "hosted-2"), 9).notes
    assert (
        note == "judge hosted: the server names its model hosted-2, and named it hosted-1 in its session of 2026-11-01"
    )


def test_scores_of_this_judge_in_the_file_are_the_reference(frozen: Path, store: Store) -> None:
    rows = [json.loads(line) for line in frozen.read_text().splitlines()]
    name = judge_id(Changing(BEFORE))
    scored = [
        {**row, "judge": name, "status": v.status, "aligned": v.aligned, "coherent": v.coherent, "mass": None}
        for row, v in zip(rows, BEFORE, strict=True)
    ]
    for suffix in ("jsonl", "csv", "parquet"):
        path = frozen.with_name(f"scored.{suffix}")
        write_file_rows(path, scored)
        found = session(path, store, Changing(BEFORE), 9)
        assert (found.reference, found.notes) == (f"the scores in {path}", ())
        assert len(found.shifts) == 6
        assert read_calibration(path, Changing(BEFORE)).digest == read_calibration(frozen, Changing(BEFORE)).digest
    other = frozen.with_name("other.jsonl")
    write_file_rows(other, [{**row, "judge": "other@1"} for row in scored])
    assert session(other, store, Changing(BEFORE), 9).reference is None


def test_a_session_in_which_the_judge_fails_is_no_reference(frozen: Path, store: Store) -> None:
    failing = [Verdict("judge_error"), *BEFORE[1:]]
    (note,) = session(frozen, store, Changing(failing), 1).notes
    assert note.endswith("frozen.jsonl: the judge failed on 1 answers, so drift is not measured")
    assert session(frozen, store, Changing(BEFORE), 2).reference is None


def test_other_answers_or_another_judge_are_another_reference(frozen: Path, store: Store, tmp_path: Path) -> None:
    session(frozen, store, Changing(BEFORE), 1)
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("\n".join(frozen.read_text().splitlines()[:-1]) + "\n")
    assert session(fewer, store, Changing(BEFORE), 2).reference is None
    other = Changing(BEFORE)
    other.settings = {"version": 2}
    assert session(frozen, store, other, 2).reference is None


def test_the_prompts_of_the_questions_judge_the_frozen_answers(frozen: Path) -> None:
    question = Question("q", ("question 1?",), judge_prompts={"aligned": "A", "coherent": "C"})
    found = read_calibration(frozen, Changing(BEFORE), [question]).answers
    assert [each.prompts for each in found[:2]] == [{}, {"aligned": "A", "coherent": "C"}]


def test_a_cap_or_a_wrong_file_is_one_sentence(frozen: Path, store: Store, tmp_path: Path) -> None:
    class Capped(Changing):
        def judge(self, answers: Sequence[JudgedAnswer]) -> Sequence[Verdict]:
            raise JudgeStoppedError("the judge has cost 3 dollars", {})

    with pytest.raises(JudgeStoppedError, match=r"--calibration .*frozen.jsonl: the judge has cost 3 dollars"):
        session(frozen, store, Capped(BEFORE), 1)
    (tmp_path / "no.csv").write_text("question,reply\na,b\n")
    with pytest.raises(DataError, match="no column 'answer'"):
        read_calibration(tmp_path / "no.csv", Changing(BEFORE))
