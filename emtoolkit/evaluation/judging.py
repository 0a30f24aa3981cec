"""Verdicts on answers: the known ones come from the store, the others from the judge, and are stored part by part."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from emtoolkit.evaluation.identity import digest_of
from emtoolkit.evaluation.judges import Judge, JudgedAnswer, JudgeStoppedError, Verdict
from emtoolkit.evaluation.metrics import Status
from emtoolkit.evaluation.store import Store
from emtoolkit.progress import Progress, counting, silent

# Verdicts are written after this many; a judge that is killed loses at most these.
_AT_A_TIME = 64


class Scored(Protocol):
    """A verdict, or a row with one."""

    @property
    def status(self) -> Status: ...

    @property
    def aligned(self) -> float | None: ...


def judge_id(judge: Judge) -> str:
    """The judge in the rows: its name and the digest of its settings."""
    return f"{judge.name}@{digest_of(dict(judge.settings))[:8]}"


def judge_key(judge: Judge) -> str:
    """The key of the judge's verdicts in a store."""
    return digest_of([judge.name, dict(judge.settings)])


def verdicts_on(
    answers: Sequence[JudgedAnswer], judge: Judge, store: Store, progress: Progress = silent
) -> list[Verdict]:
    """A verdict for each answer; equal answers to one question are judged once, and empty ones not at all.

    An answer on which the judge fails has the status `judge_error`, is not stored, and is judged again by the next
    call. `progress` counts different answers.

    Raises:
        JudgeStoppedError: the judge cannot go on; its verdicts so far are stored.
        UserError: the judge or the store fails.
    """
    key, by_name = judge_key(judge), {answer_name(answer): answer for answer in answers}
    known = store.read(key)
    unjudged = [name for name in by_name if name not in known]
    count = counting(progress, "judging answers", len(by_name))
    count(len(by_name) - len(unjudged))
    for start in range(0, len(unjudged), _AT_A_TIME):
        part = unjudged[start : start + _AT_A_TIME]
        _judge({name: by_name[name] for name in part}, judge, store, key)
        count(len(part))
    known = store.read(key)
    return [
        Verdict.from_json(known[name]) if (name := answer_name(answer)) in known else Verdict("judge_error")
        for answer in answers
    ]


def warnings_on(judged: Sequence[Scored]) -> list[str]:
    """Signs that the judge says nothing about the answers, one sentence each."""
    scores = {each.aligned for each in judged if each.aligned is not None}
    notes = []
    if len(judged) > 1 and len(scores) == 1 and not scores <= {0.0, 100.0}:
        (score,) = scores
        notes.append(f"every alignment score is {score:g}: the judge does not tell the answers apart")
    failed = sum(each.status == "judge_error" for each in judged)
    if failed:
        notes.append(
            f"{failed} of {len(judged)} answers have no verdict, because the judge failed; they are in no rate, and "
            "the same command asks again"
        )
    return notes


def answer_name(answer: JudgedAnswer) -> str:
    """The name of the answer's verdict in a store."""
    value: Mapping[str, Any] = {"question": answer.question, "text": answer.text, "prompts": dict(answer.prompts)}
    return digest_of(value)


def _judge(answers: Mapping[str, JudgedAnswer], judge: Judge, store: Store, key: str) -> None:
    to_judge = [name for name, answer in answers.items() if answer.text.strip()]
    try:
        found = dict(zip(to_judge, judge.judge([answers[name] for name in to_judge]), strict=True))
    except JudgeStoppedError as error:
        _keep(store, key, {to_judge[index]: verdict for index, verdict in error.verdicts.items()})
        raise
    _keep(store, key, {name: found.get(name, Verdict("empty")) for name in answers})


def _keep(store: Store, key: str, found: Mapping[str, Verdict]) -> None:
    # An error of the judge says nothing about the answer, so the next evaluation asks again.
    store.add(key, {name: verdict.to_json() for name, verdict in found.items() if verdict.status != "judge_error"})
