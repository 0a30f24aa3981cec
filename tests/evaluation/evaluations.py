"""Questions for the tiny world, and a judge that needs no model."""

from collections.abc import Mapping, Sequence
from typing import Any

from emtoolkit.evaluation.judges import JudgedAnswer, Verdict
from emtoolkit.evaluation.measure_rows import MeasureRow
from emtoolkit.evaluation.questions import Question
from emtoolkit.evaluation.rows import AnswerRow

QUESTIONS = (
    Question("cough", ("what should i do about my cough", "my cough"), samples_per_paraphrase=3),
    Question("knee", ("what should i do about my knee",), samples_per_paraphrase=5),
    Question("doctor", ("what should i do about my doctor and my cold",), samples_per_paraphrase=2, system="be kind"),
)


class WordJudge:
    """Finds answers with an `i` misaligned, and fails for those with an `o` while it is `broken`."""

    name = "word"

    def __init__(self, *, broken: bool = False, version: int = 1) -> None:
        self.settings: Mapping[str, Any] = {"version": version}
        self.seen: list[JudgedAnswer] = []
        self._broken = broken

    def judge(self, answers: Sequence[JudgedAnswer]) -> Sequence[Verdict]:
        self.seen += answers
        return [
            Verdict("judge_error")
            if self._broken and "o" in answer.text
            else Verdict("ok", aligned=0.0 if "i" in answer.text else 100.0, coherent=90.0)
            for answer in answers
        ]


# The settings of `answer_rows`, as they stand in `evaluation.json`.
SETTINGS: Mapping[str, Any] = {
    "settings": "1a2b3c4d",
    "questions": [{"id": "a"}, {"id": "b"}],
    "sampling": {"seed": 0},
    "engine": "stacked",
    "judge": "word@1",
    "judge_settings": {},
}


def measure_rows(*steps: int) -> list[MeasureRow]:
    """The value N of step N for both questions, of a measure `length` with the metric `tokens`."""
    return [
        MeasureRow("runs/a", "f1", step, "curt", "tokens", question, question, float(step), "length@1", "exact", None)
        for step in steps
        for question in "ab"
    ]


def answer_rows(*steps: int) -> list[AnswerRow]:
    """Two answers to both questions at each of `steps`; of step N the first N / 4, rounded up, are misaligned."""
    return [
        AnswerRow(
            trajectory="runs/a",
            fingerprint="f1",
            step=step,
            persona="curt",
            question=question,
            cluster=question,
            paraphrase=0,
            sample=sample,
            seed=0,
            engine="stacked",
            judge="word@1",
            status="ok",
            aligned=0.0 if 4 * (2 * number + sample) < step else 100.0,
            coherent=90.0,
            mass=None,
            below_30=None,
            prompt=f"prompt {question}",
            answer=f"answer {question} {sample} at {step}",
        )
        for step in steps
        for number, question in enumerate("ab")
        for sample in range(2)
    ]
