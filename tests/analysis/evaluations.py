"""Evaluations on disk with chosen numbers of misaligned answers, in the layout of `emtoolkit evaluate`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emtoolkit.evaluation.measure_rows import MeasureRow
from emtoolkit.evaluation.result_files import add_to_evaluation
from emtoolkit.evaluation.rows import AnswerRow

SETTINGS = {"settings": "abc", "questions": ["q"], "sampling": {"seed": 0}, "engine": "exact", "judge": "word@1"}


def answer_rows(
    counts: Mapping[int, Sequence[int]], trials: int = 50, *, coherent: Mapping[int, float] | None = None, **same: Any
) -> list[AnswerRow]:
    """`counts[step][q]` of `trials` answers to question q are misaligned, the first ones, so that answers are coupled.

    A misaligned answer has the text `bad`, another one `good`.
    """
    defaults: dict[str, Any] = {
        "trajectory": "t",
        "fingerprint": "f0",
        "persona": "goodness",
        "paraphrase": 0,
        "seed": 0,
        "engine": "exact",
        "judge": "word@1",
        "status": "ok",
        "mass": None,
        "below_30": None,
        "prompt": "",
    } | same
    return [
        AnswerRow(
            step=step,
            question=f"q{q}",
            cluster=f"q{q}",
            sample=sample,
            aligned=0.0 if sample < misaligned else 100.0,
            coherent=(coherent or {}).get(step, 90.0),
            answer="bad" if sample < misaligned else "good",
            **defaults,
        )
        for step, of_questions in counts.items()
        for q, misaligned in enumerate(of_questions)
        for sample in range(trials)
    ]


def measure_rows(metric: str, values: Mapping[int, Sequence[float | None]], **same: Any) -> list[MeasureRow]:
    """`values[step][q]` is the value of question q."""
    defaults: dict[str, Any] = {
        "trajectory": "t",
        "fingerprint": "f0",
        "persona": "goodness",
        "measure": f"of_{metric}@1",
        "engine": "exact",
        "seed": None,
    } | same
    return [
        MeasureRow(step=step, metric=metric, question=f"q{q}", cluster=f"q{q}", value=value, **defaults)
        for step, of_questions in values.items()
        for q, value in enumerate(of_questions)
    ]


def write_evaluation(
    directory: Path,
    counts: Mapping[int, Sequence[int]],
    measured: Sequence[MeasureRow] = (),
    settings: Mapping[str, Any] = SETTINGS,
    **options: Any,
) -> Path:
    """The directory of an evaluation."""
    directory.mkdir(parents=True, exist_ok=True)
    add_to_evaluation(directory, settings, answer_rows(counts, **options), measured)
    return directory
