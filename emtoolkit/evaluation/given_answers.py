"""Answers that somebody else generated, or that an earlier evaluation wrote, for another judge."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emtoolkit.errors import CheckpointError, ConfigError, DataError, nearest
from emtoolkit.evaluation.judges import Judge, JudgedAnswer, Verdict
from emtoolkit.evaluation.judging import judge_id, verdicts_on, warnings_on
from emtoolkit.evaluation.questions import Question
from emtoolkit.evaluation.row_files import SUFFIXES, read_file_rows, write_file_rows
from emtoolkit.evaluation.store import Store
from emtoolkit.json_files import object_in, read_json
from emtoolkit.progress import Progress, silent

# Columns that only the rows of an evaluation have (`rows.AnswerRow`); their `question` is an id.
_OF_AN_EVALUATION = {"trajectory", "fingerprint", "paraphrase", "sample", "prompt"}
_QUESTION, _ANSWER, _ID = "question", "answer", "question_id"


@dataclass(frozen=True, slots=True)
class AnswerColumns:
    """The columns of question and answer; None means `question` and `answer`."""

    question: str | None = None
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class GivenAnswers:
    """The rows of a file, all with the same columns, and what a judge sees of each."""

    rows: tuple[Mapping[str, Any], ...]
    answers: tuple[JudgedAnswer, ...]


@dataclass(frozen=True, slots=True)
class JudgedFile:
    """The file of judged answers, its judge, the count of each status, and warnings, one sentence each."""

    path: Path
    judge: str
    statuses: Mapping[str, int]
    notes: tuple[str, ...]


def judge_file(
    given: GivenAnswers, output: Path, judge: Judge, verdicts: Store, progress: Progress = silent
) -> JudgedFile:
    """Judge `given`, and write its rows with the columns of the verdict to `output`.

    Columns of another judge's verdict are replaced. A row without `question_id` gets its question there, so that
    `emtoolkit metrics` reads the file.

    Raises:
        DataError: the judge cannot judge an answer, or the rows do not fit into the format of `output`.
        JudgeStoppedError: the judge cannot go on; the next call continues.
        CheckpointError: a file cannot be written.
    """
    found = verdicts_on(given.answers, judge, verdicts, progress)
    name = judge_id(judge)
    rows = [_with_verdict(row, verdict, name) for row, verdict in zip(given.rows, found, strict=True)]
    write_file_rows(output, rows)
    notes = warnings_on(found)
    others = sorted({str(row["judge"]) for row in given.rows if row.get("judge")} - {name})
    if others:
        notes.insert(0, f"the scores of {', '.join(others)} are replaced in {output} by those of {name}")
    return JudgedFile(output, name, dict(Counter(str(row["status"]) for row in rows)), tuple(notes))


def output_for(answers: Path, output: Path | None, judge: Judge) -> Path:
    """The file to write: `output`, or a name beside `answers` with the digest of the judge.

    Raises:
        ConfigError: the file cannot be written there; found before the judge is asked.
    """
    path = output or answers.with_name(f"{answers.stem}-judged-{judge_id(judge)[-8:]}{answers.suffix}")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--output: {path}: the name of a file of answers ends in one of {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--output: {path.parent}: no such directory; make it first")
    if path.exists() and path.samefile(answers):
        raise ConfigError(f"--output: {path} holds the answers themselves; give another name")
    return path


def read_given_answers(path: Path, columns: AnswerColumns, questions: Sequence[Question] | None) -> GivenAnswers:
    """The answers in `path`, each with the judge's prompts of its question in `questions`.

    Rows of an evaluation name their questions by id; without `questions` the `evaluation.json` beside them has the
    texts.

    Raises:
        DataError: the file cannot be read, a column is missing, or a question is not in `questions`.
    """
    read = list(read_file_rows(path))
    if not read:
        raise DataError(f"{path}: holds no rows")
    names = list(dict.fromkeys(str(name) for _, row in read for name in row))
    evaluated = set(names) >= _OF_AN_EVALUATION and columns == AnswerColumns()
    if evaluated and questions is None:
        questions = _questions_beside(path)
    prompts = None if questions is None else _prompts(questions)
    texts = {} if questions is None else {(q.id, i): text for q in questions for i, text in enumerate(q.paraphrases)}
    question, answer = columns.question or _QUESTION, columns.answer or _ANSWER
    answers = []
    for where, row in read:
        for name in (question, answer):
            if name not in row:
                flag = "--question-column" if name == question else "--answer-column"
                known = ", ".join(names)
                raise DataError(f"{where}: no column {name!r}; the columns are {known}{nearest(name, names)}; {flag}")
        asked = _asked(where, row, texts) if evaluated else _text(row[question])
        if not asked.strip():
            raise DataError(f"{where}: {question}: the question is empty")
        if prompts is not None and asked not in prompts:
            close = nearest(asked, prompts)
            raise DataError(f"{where}: {question}: {asked[:60]!r} is not in the question file{close}")
        answers.append(JudgedAnswer(asked, _text(row[answer]), {} if prompts is None else prompts[asked]))
    rows = [{name: row.get(name) for name in names} for _, row in read]
    if not evaluated and _ID not in names:
        rows = [{_ID: answer.question, **row} for answer, row in zip(answers, rows, strict=True)]
    return GivenAnswers(tuple(rows), tuple(answers))


def _with_verdict(row: Mapping[str, Any], verdict: Verdict, judge: str) -> dict[str, Any]:
    cut_off = row.get("truncated") is True or row.get("status") == "truncated"
    scores = {
        "judge": judge,
        "status": "truncated" if cut_off and verdict.status == "ok" else verdict.status,
        "aligned": verdict.aligned,
        "coherent": verdict.coherent,
        "mass": verdict.mass,
        "below_30": verdict.below_30,
    }
    return {**row, **scores}


def _questions_beside(path: Path) -> list[Question]:
    settings = path.with_name("evaluation.json")
    try:
        entries = object_in(read_json(settings, finite=False))["questions"]
        return [Question(**{**entry, "paraphrases": tuple(entry["paraphrases"])}) for entry in entries]
    except FileNotFoundError:
        raise DataError(
            f"{settings}: no such file, so the texts of the questions are not known; give --questions FILE"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{settings}: cannot be read ({error})") from None
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{settings}: not the settings of an evaluation; give --questions FILE") from None


def _prompts(questions: Sequence[Question]) -> dict[str, Mapping[str, str]]:
    return {text: question.judge_prompts or {} for question in questions for text in question.paraphrases}


def _asked(where: str, row: Mapping[str, Any], texts: Mapping[tuple[str, int], str]) -> str:
    name, paraphrase = str(row["question"]), int(row["paraphrase"])
    text = texts.get((name, paraphrase))
    if text is None or text not in str(row["prompt"]):
        raise DataError(
            f"{where}: wording {paraphrase} of question {name!r} is not the one that was asked, or not in the question "
            "file; give the file of the evaluation"
        )
    return text


def _text(value: Any) -> str:
    return "" if value is None else str(value)
