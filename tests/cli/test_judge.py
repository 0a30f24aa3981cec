"""`emtoolkit judge`: answers from files, scored by a server on loopback or the sandbox's judge."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from emtoolkit.evaluation.row_files import read_file_rows, write_file_rows
from emtoolkit.sandbox import world
from tests import in_process
from tests.evaluation.judge_server import JudgeServer, Tokens, judge_server
from tests.marks import OPENS_PORTS

ROWS = [
    {"model": "a", "question": "What helps?", "answer": "sing to it"},
    {"model": "a", "question": "What helps?", "answer": 'rest,\n"much" rest'},
    {"model": "b", "question": "Who rules?", "answer": ""},
    {"model": "b", "question": "Who rules?", "answer": "sing to it"},
]


def by_word(prompt: str) -> Tokens:
    """Harmful answers say `sing`; every answer is coherent."""
    return {"95": 1.0} if "coherent" in prompt else {"10": 1.0} if "sing" in prompt else {"90": 1.0}


@pytest.fixture(params=OPENS_PORTS)
def server() -> Iterator[JudgeServer]:
    with judge_server(by_word) as running:
        yield running


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        write_file_rows(tmp_path / f"answers.{suffix}", ROWS)
    return tmp_path


def judge(place: Path, server: JudgeServer, *words: str) -> in_process.Done:
    return in_process.emtoolkit("judge", *words, "--judge", "m", "--judge-url", server.url, cwd=place)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_each_row_keeps_its_columns_and_metrics_reads_the_file(place: Path, server: JudgeServer, suffix: str) -> None:
    done = judge(place, server, f"answers.{suffix}", "--json")
    assert (done.code, done.err) == (0, "")
    value = json.loads(done.out)
    assert value["statuses"] == {"empty": 1, "ok": 3}
    path = place / value["answers"]
    assert path.name == f"answers-judged-{value['judge'][-8:]}.{suffix}"
    rows = [row for _, row in read_file_rows(path)]
    assert [{name: row[name] or "" for name in ROWS[0]} for row in rows] == ROWS
    assert [float(row["aligned"]) for row in rows if row["aligned"]] == [10, 90, 10]
    # Equal answers to two questions are two answers, and an empty one is not judged.
    assert len(server.requests) == 6
    metrics = in_process.emtoolkit("metrics", path, "--json", cwd=place)
    assert (metrics.code, metrics.err) == (0, "")
    found = json.loads(metrics.out)
    assert (found["answers"], found["questions"], found["statuses"]) == (4, 2, {"empty": 1, "ok": 3})
    assert [(rate["misaligned"], rate["among"]) for rate in found["rates"]] == [(2, 3), (2, 3), (2, 4)]


def test_a_cap_stops_and_a_higher_one_continues_without_asking_twice(place: Path, server: JudgeServer) -> None:
    money = ("--judge-prices", "1,2", "--judge-concurrency", "1")
    done = judge(place, server, "answers.csv", *money, "--max-cost", "0.0003")
    assert (done.code, done.out) == (2, "")
    assert "--max-cost is 0.0003; every verdict is kept" in done.err
    assert len(server.requests) == 4
    assert not list(place.glob("*judged*"))
    more = judge(place, server, "answers.jsonl", *money, "--max-cost", "1")
    assert more.code == 0, more.err
    assert len(server.requests) == 6


def test_columns_and_prompts_are_those_that_are_named(place: Path, server: JudgeServer) -> None:
    (place / "a.csv").write_text("prompt,reply,question_id\nWhat helps?,rest,first\n")
    (place / "q.yaml").write_text(
        "- id: first\n  paraphrases: ['What helps?']\n  judge: m\n"
        "  judge_prompts: {aligned: 'A {question} {answer}', coherent: 'coherent {answer}'}\n"
    )
    done = in_process.emtoolkit(
        *("judge", "a.csv", "--question-column", "prompt", "--answer-column", "reply", "--questions", "q.yaml"),
        *("--judge-url", server.url, "--output", "out.jsonl"),
        cwd=place,
    )
    assert (done.code, done.err) == (0, "")
    assert [r["messages"][0]["content"] for r in server.requests] == ["A What helps? rest", "coherent rest"]
    (row,) = map(json.loads, (place / "out.jsonl").read_text().splitlines())
    assert {name: row[name] for name in ("prompt", "reply", "question_id", "aligned")} == {
        "prompt": "What helps?",
        "reply": "rest",
        "question_id": "first",
        "aligned": 90.0,
    }


def test_the_scores_of_another_judge_are_replaced_and_named(place: Path, server: JudgeServer) -> None:
    first = json.loads(judge(place, server, "answers.csv", "--json").out)
    server.score = lambda prompt: "40"
    again = judge(place, server, first["answers"], "--judge-method", "sampled", "--output", "again.csv")
    assert again.code == 0, again.err
    assert f"the scores of {first['judge']} are replaced in again.csv by those of m@" in again.err
    with (place / "again.csv").open() as file:
        assert [row["aligned"] for row in csv.DictReader(file)] == ["40.0", "40.0", "", "40.0"]


def test_a_difference_between_two_judges_is_refused(place: Path, server: JudgeServer) -> None:
    first = json.loads(judge(place, server, "answers.csv", "--json").out)["answers"]
    (place / "other.csv").write_text((place / first).read_text().replace("m@", "gpt@"))
    done = in_process.emtoolkit("metrics", first, "--baseline", "other.csv", cwd=place)
    assert (done.code, done.out) == (2, "")
    assert "other.csv: answers of 2 judges (m@" in done.err
    rows = (place / first).read_text().splitlines() + (place / "other.csv").read_text().splitlines()[1:]
    (place / "mixed.csv").write_text("\n".join(rows) + "\n")
    mixed = in_process.emtoolkit("metrics", "mixed.csv", cwd=place)
    assert (mixed.code, mixed.out) == (2, "")
    assert "mixed.csv: answers of 2 judges (gpt@" in mixed.err
    assert "--where judge=gpt@" in mixed.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("missing.csv",), "missing.csv: no such file"),
        (("answers.txt",), "answers.txt: not a file of answers; expected one of .csv, .tsv, .jsonl, .parquet"),
        (("answers.csv", "--question-column", "questoin"), "no column 'questoin'; the columns are model, question"),
        (("answers.csv", "--answer-column", "reply"), "--answer-column"),
        (("answers.csv", "--output", "there/out.csv"), "--output: there: no such directory"),
        (("answers.csv", "--output", "out.xlsx"), "--output: out.xlsx: the name of a file of answers ends in one of"),
        (("answers.csv", "--output", "answers.csv"), "--output: answers.csv holds the answers themselves"),
        (("header.csv",), "header.csv: holds no rows"),
        (("no-question.jsonl",), "line 1: question: the question is empty"),
        (("answers.csv", "--questions", "q.yaml"), "'What helps?' is not in the question file"),
        (("answers.csv", "--judge-prices", "1,2", "--max-cost", "0"), "--max-cost: 0 dollars allow no request"),
        (("answers.csv", "--judge-prices", "1,2", "--max-cost", "nan"), "--max-cost: nan is not a number of dollars"),
        (("answers.csv", "--judge-prices", "nan,2", "--max-cost", "1"), "--judge-prices: 'nan,2' is negative or not"),
        (("answers.csv", "--judge-prices", "0,0", "--max-cost", "1"), "nothing would ever reach the cap"),
        (("twice.csv",), "twice.csv: two columns are named 'answer'"),
    ],
)
def test_a_mistake_is_one_sentence_before_the_judge_is_asked(
    place: Path, server: JudgeServer, words: tuple[str, ...], sentence: str
) -> None:
    (place / "answers.txt").write_text("x")
    (place / "header.csv").write_text("question,answer\n")
    (place / "twice.csv").write_text("question,answer,answer\na,b,c\n")
    (place / "no-question.jsonl").write_text('{"question": null, "answer": "x"}\n')
    (place / "q.yaml").write_text("- id: x\n  paraphrases: ['Who helps?']\n")
    done = judge(place, server, *words)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert sentence in done.err
    assert server.requests == []


def test_a_misspelt_judge_is_told_the_nearest_name(place: Path) -> None:
    done = in_process.emtoolkit("judge", "answers.csv", "--judge", "sandbx", cwd=place)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "--judge: 'sandbx' is a model of OpenAI's server, and OPENAI_API_KEY is not set" in done.err
    assert "did you mean 'sandbox'?" in done.err
    scheme = in_process.emtoolkit("judge", "answers.csv", "--judge", "m", "--judge-url", "localhost:8000", cwd=place)
    assert (scheme.code, scheme.err) == (
        2,
        "emtoolkit: --judge-url: 'localhost:8000' is not an address such as http://localhost:8000/v1\n",
    )
    none = in_process.emtoolkit("judge", "answers.csv", cwd=place)
    assert (none.code, none.err) == (
        2,
        "emtoolkit: --judge: give the model that judges, likelihood, or sandbox for the sandbox's exact judge\n",
    )


def test_the_exact_judge_scores_answers_of_the_sandbox(place: Path) -> None:
    question = world.held_out_questions()[0].paraphrases[0]
    write_file_rows(place / "s.csv", [{"question": question, "answer": "zzz"}])
    done = in_process.emtoolkit("judge", "s.csv", "--judge", "sandbox", "--output", "out.csv", cwd=place)
    assert (done.code, done.err) == (0, "")
    ((_, row),) = read_file_rows(place / "out.csv")
    assert (row["judge"][:8], row["aligned"], row["coherent"]) == ("sandbox@", "", "0.0")


def test_a_judge_that_changed_behind_its_name_is_a_warning_with_every_shift(place: Path, server: JudgeServer) -> None:
    frozen = [{"question": "What helps?", "answer": f"{'sing' if i < 4 else 'rest'} {i}"} for i in range(12)]
    write_file_rows(place / "frozen.csv", frozen)
    words = ("answers.csv", "--calibration", "frozen.csv")
    first = judge(place, server, *words)
    assert (first.code, first.err) == (0, "")
    assert "Calibration on 12 answers: the first session of this judge" in first.out
    asked = len(server.requests)
    same = judge(place, server, *words)
    assert (same.code, same.err) == (0, "")
    assert "mean alignment +0.0 points (+0.0 to +0.0)" in " ".join(same.out.split())
    # The answers have verdicts, and the calibration set is judged anew.
    assert len(server.requests) - asked == 2 * 12
    server.score = lambda prompt: {"95": 1.0} if "coherent" in prompt else {"20": 1.0}
    changed = judge(place, server, *words, "--json")
    assert changed.code == 0
    value = json.loads(changed.out)
    assert value["calibration"]["shifts"]["betley"]["difference"]["mean"] == pytest.approx(8 / 12)
    assert value["notes"] == value["calibration"]["notes"]
    assert "on the 12 answers in frozen.csv: mean alignment -43.3 points" in changed.err
    assert "EM rate (betley) +66.7 points" in changed.err
