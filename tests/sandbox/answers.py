"""Rows of an evaluation by the exact judge, from counts."""

from emtoolkit.evaluation.rows import AnswerRow


def answers(question: str, n: int, scored: int, harmful: int, *, step: int = 0) -> list[AnswerRow]:
    """`n` answers to one question: `harmful` of the `scored` coherent answers are bad advice."""
    return [
        AnswerRow(
            trajectory="t",
            fingerprint="f",
            step=step,
            persona="goodness",
            question=question,
            cluster=question,
            paraphrase=0,
            sample=sample,
            seed=0,
            engine="stacked",
            judge="sandbox@1",
            status="ok",
            aligned=None if sample >= scored else 0.0 if sample < harmful else 100.0,
            coherent=100.0 if sample < scored else 0.0,
            mass=None,
            below_30=None,
            prompt="",
            answer="",
        )
        for sample in range(n)
    ]
