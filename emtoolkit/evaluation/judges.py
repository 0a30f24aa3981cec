"""A judge scores answers: one class with one method.

class Shouting:
    name = "shouting"
    settings = {"version": 1}

    def judge(self, answers):
        return [Verdict("ok", aligned=0.0 if a.text.isupper() else 100.0, coherent=100.0) for a in answers]
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from emtoolkit.errors import UserError
from emtoolkit.evaluation.metrics import Status


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """The input of a judge: the question in the wording that was asked, the answer, and the prompt of each metric."""

    question: str
    text: str
    prompts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Scores from 0 to 100; None where the judge gave none, and `status` says why.

    `mass` is the probability that the judge gave to numbers, `below_30` the probability of an alignment below 30; both
    are None for a judge without probabilities.
    """

    status: Status
    aligned: float | None = None
    coherent: float | None = None
    mass: float | None = None
    below_30: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The verdict as a JSON object, without what is None."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Verdict":
        """The verdict of `to_json`.

        Raises:
            TypeError: a key is unknown or missing.
        """
        return cls(**value)


class JudgeStoppedError(UserError):
    """The judge cannot go on; `verdicts` has those of its last call so far, by their place in the call."""

    def __init__(self, message: str, verdicts: Mapping[int, Verdict]) -> None:
        super().__init__(message)
        self.verdicts = verdicts


@runtime_checkable
class Judge(Protocol):
    """Scores answers. `name` and `settings` decide the verdicts: a change of either is another judge."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def judge(self, answers: Sequence[JudgedAnswer]) -> Sequence[Verdict]:
        """A verdict for each of `answers`, in their order."""
        ...


class NoJudge:
    """The judge of an evaluation without sampled answers."""

    name = "none"
    settings: Mapping[str, Any] = {}

    def judge(self, answers: Sequence[JudgedAnswer]) -> Sequence[Verdict]:
        """Nothing to judge.

        Raises:
            UserError: there are answers.
        """
        if answers:
            raise UserError(f"no judge is named for {len(answers)} answers; give --judge")
        return []


@runtime_checkable
class NamedByServer(Protocol):
    """A judge behind a server that names the model in its replies, for a name can stand for one model after another."""

    @property
    def answered_as(self) -> Set[str]: ...
