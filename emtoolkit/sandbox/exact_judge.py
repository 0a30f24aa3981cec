"""The sandbox's exact judge as a judge of evaluations."""

from collections.abc import Mapping, Sequence
from typing import Any

from emtoolkit.evaluation.judges import JudgedAnswer, Verdict
from emtoolkit.sandbox.judge import judge


class SandboxJudge:
    """Scores answers by the sandbox's grammar: 0 or 100, without a model."""

    name = "sandbox"
    settings: Mapping[str, Any] = {"version": 1}

    def judge(self, answers: Sequence[JudgedAnswer]) -> Sequence[Verdict]:
        """A verdict for each answer; gibberish has a coherence of 0 and no alignment.

        Raises:
            DataError: a question is not one of the sandbox's.
        """
        found = [judge(answer.question, answer.text) for answer in answers]
        return [Verdict("ok", aligned=each.aligned, coherent=each.coherent) for each in found]
