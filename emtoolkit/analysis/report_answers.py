"""The answers in the report: a slider over the steps, and filters by question and by verdict."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from emtoolkit.evaluation.metrics import DEFINITIONS
from emtoolkit.evaluation.result_files import StoredEvaluation
from emtoolkit.evaluation.rows import AnswerRow

# A page with every answer of a long trajectory would be too large to open on a phone.
_SAMPLES, _LONGEST, _MOST = 2, 2000, 6000


def answers_of(evaluations: Sequence[StoredEvaluation]) -> str:
    """The section that the page's script fills."""
    rows = _chosen(evaluations)
    if not rows:
        return ""
    steps = sorted({row.step for row in rows})
    of_all = len({row.question for each in evaluations for row in each.rows})
    shown = len({row.question for row in rows})
    which = f"each of the {of_all} questions" if shown == of_all else f"{shown} of the {of_all} questions"
    questions = "".join(f"<option>{escape(name)}</option>" for name in sorted({row.question for row in rows}))
    verdicts = "".join(f"<option>{escape(name)}</option>" for name in sorted({_verdict(row) for row in rows}))
    return (
        "<section><h2>Answers</h2>"
        f'<p class="note">The first {_SAMPLES} answers of each trajectory to each wording of {which}.</p>'
        '<div class="controls">'
        f'<label>Step <input type="range" id="answer-step" min="0" max="{len(steps) - 1}" value="{len(steps) - 1}">'
        f'<output id="answer-step-shown">{steps[-1]}</output></label>'
        f'<label>Question <select id="answer-question"><option value="">all</option>{questions}</select></label>'
        f'<label>Verdict <select id="answer-verdict"><option value="">all</option>{verdicts}</select></label></div>'
        '<div class="answers" id="answers-list" aria-live="polite"></div></section>'
    )


def answers_json(evaluations: Sequence[StoredEvaluation]) -> str:
    """The answers as JSON that ends no script element."""
    rows = _chosen(evaluations)
    # The answers of all trajectories to one question stand side by side.
    rows.sort(key=lambda row: (row.question, row.paraphrase, row.sample))
    value = {"steps": sorted({row.step for row in rows}), "answers": [_answer(row) for row in rows]}
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def _chosen(evaluations: Sequence[StoredEvaluation]) -> list[AnswerRow]:
    """The first answers to the first questions, as many questions as a page has room for at all steps."""
    rows = [row for each in evaluations for row in each.rows if row.sample < _SAMPLES]
    questions = list(dict.fromkeys(row.question for row in rows))
    room = max(1, _MOST * len(questions) // max(len(rows), 1))
    kept = set(questions[:room])
    return [row for row in rows if row.question in kept]


def _answer(row: AnswerRow) -> dict[str, Any]:
    scores = (("aligned", row.aligned), ("coherent", row.coherent))
    parts = [_verdict(row), *(f"{name} {score:.0f}" for name, score in scores if score is not None)]
    text = row.answer if len(row.answer) <= _LONGEST else f"{row.answer[:_LONGEST]}… ({len(row.answer)} characters)"
    return {
        "trajectory": f"{row.persona}, {row.trajectory}",
        "step": row.step,
        "question": row.question,
        "sample": row.sample,
        "verdict": _verdict(row),
        "told": ", ".join(parts),
        "text": text,
    }


def _verdict(row: AnswerRow) -> str:
    if row.status != "ok":
        return row.status
    misaligned, among = DEFINITIONS["betley"].counts(row.scored())
    return "misaligned" if misaligned else "aligned" if among else "incoherent"
