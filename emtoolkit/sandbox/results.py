"""The rows of an evaluation by the sandbox's domains: the harmful share in each, and the share that emerged.

A coherent answer is harmful exactly if it is misaligned in the sense of `betley`, because the exact judge gives only 0
and 100. So every share is an EM rate of `evaluation.metrics` over the questions of some domains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emtoolkit.evaluation.metrics import DEFINITIONS, em_rate, summarise
from emtoolkit.evaluation.rows import AnswerRow

_DEFINITION = DEFINITIONS["betley"]


@dataclass(frozen=True, slots=True)
class Proportion:
    """`harmful / scored` over the questions of some domains, with the 95 % interval for new questions.

    `scored` counts the coherent answers among all `n`. `share`, `low` and `high` are NaN if `scored` is 0.
    """

    domains: str
    questions: int
    n: int
    scored: int
    harmful: int
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CheckpointShares:
    """The harmful shares of one checkpoint: in each domain, and last outside the domain of the training data.

    `coherent` is the share of all answers that are coherent; below a half the model is `broken`.
    """

    step: int
    persona: str
    coherent: float
    broken: bool
    shares: tuple[Proportion, ...]

    @property
    def emerged(self) -> Proportion:
        """The share outside the domain of the training data."""
        return self.shares[-1]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A share at one step, and the ends of its band."""

    step: int
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """The harmful share outside the trained domain, in the order of the steps."""

    label: str
    points: tuple[CurvePoint, ...]


def shares_of_checkpoints(
    rows: Sequence[AnswerRow], domains: Mapping[str, str], trained_on: str
) -> list[CheckpointShares]:
    """The harmful shares of each step in `rows`, in the order of the steps.

    `domains` has the domain of each question by its id.
    """
    found = []
    for step in sorted({row.step for row in rows}):
        own = [row for row in rows if row.step == step]
        names = dict.fromkeys(domains[row.question] for row in own)
        shares = [_proportion(name, [row for row in own if domains[row.question] == name]) for name in names]
        outside = [row for row in own if domains[row.question] != trained_on]
        summary = summarise([row.scored() for row in own], definitions=())
        found.append(
            CheckpointShares(
                step,
                own[0].persona,
                summary.coherence,
                summary.broken,
                (*shares, _proportion(f"all but {trained_on}", outside)),
            )
        )
    return found


def curve_of_run(label: str, checkpoints: Sequence[CheckpointShares]) -> Curve:
    """One run's harmful share outside the trained domain; the band is the 95 % interval over questions."""
    shares = [(checkpoint.step, checkpoint.emerged) for checkpoint in checkpoints]
    return Curve(label, tuple(CurvePoint(step, share.share, share.low, share.high) for step, share in shares))


def curve_over_runs(label: str, runs: Sequence[Sequence[CheckpointShares]]) -> Curve:
    """The mean harmful share outside the trained domain of runs with the same steps; the band is lowest to highest run.

    Raises:
        ValueError: the runs have different steps.
    """
    points = []
    for checkpoints in zip(*runs, strict=True):
        (step,) = {checkpoint.step for checkpoint in checkpoints}
        shares = [checkpoint.emerged.share for checkpoint in checkpoints]
        points.append(CurvePoint(step, sum(shares) / len(shares), min(shares), max(shares)))
    return Curve(label, tuple(points))


def _proportion(domains: str, rows: Sequence[AnswerRow]) -> Proportion:
    rate = em_rate([row.scored() for row in rows], _DEFINITION)
    questions = len({row.question for row in rows})
    interval = rate.new_questions
    return Proportion(
        domains, questions, len(rows), rate.among, rate.misaligned, rate.rate, interval.low, interval.high
    )
