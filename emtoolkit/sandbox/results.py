"""Counted answers of checkpoints, and the statistics of them: proportions with intervals, and curves over steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emtoolkit.evaluation.intervals import Counts, posterior_interval


@dataclass(frozen=True, slots=True)
class QuestionCounts:
    """The `n` answers to one question: `scored` of them are coherent, and `harmful` of the scored are bad advice."""

    domain: str
    question_id: str
    n: int
    scored: int
    harmful: int


@dataclass(frozen=True, slots=True)
class Proportion:
    """`harmful / scored` over some questions, with the 95 % interval for new questions (`evaluation.intervals`).

    The denominator counts the coherent answers, not all `n`. `share`, `low` and `high` are NaN if `scored` is 0.
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
class CheckpointResult:
    """The answers of one checkpoint; `persona_override` is the persona that replaced the run's own, if any."""

    step: int
    counts: tuple[QuestionCounts, ...]
    persona: str = "baseline"
    persona_override: str | None = None

    @property
    def coherent(self) -> float:
        """The share of the answers that are coherent."""
        return sum(question.scored for question in self.counts) / sum(question.n for question in self.counts)


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


def harmful_share_by_domain(counts: Sequence[QuestionCounts]) -> list[Proportion]:
    """The harmful share in each domain, in the order of `counts`, and then in `all but X` for each domain X."""
    domains = list(dict.fromkeys(question.domain for question in counts))
    return [
        *(_proportion(domain, [question for question in counts if question.domain == domain]) for domain in domains),
        *(other_domains(counts, domain) for domain in domains if len(domains) > 1),
    ]


def shares_by_domain(counts: Sequence[QuestionCounts], trained_on: str) -> list[Proportion]:
    """The harmful share in each domain, in the order of `counts`, and then outside `trained_on`."""
    outside = f"all but {trained_on}"
    shares = harmful_share_by_domain(counts)
    return [share for share in shares if share.domains == outside or not share.domains.startswith("all but ")]


def other_domains(counts: Sequence[QuestionCounts], domain: str) -> Proportion:
    """The harmful share outside `domain`: in a model trained on `domain`, the share that emerged."""
    return _proportion(f"all but {domain}", [question for question in counts if question.domain != domain])


def curve_of_run(label: str, results: Sequence[CheckpointResult], trained_on: str) -> Curve:
    """One run's harmful share outside `trained_on`; the band is the 95 % interval over questions."""
    shares = [(result.step, other_domains(result.counts, trained_on)) for result in results]
    return Curve(label, tuple(CurvePoint(step, share.share, share.low, share.high) for step, share in shares))


def curve_over_runs(label: str, runs: Sequence[Sequence[CheckpointResult]], trained_on: str) -> Curve:
    """The mean harmful share outside `trained_on` of runs with the same steps; the band is lowest to highest run."""
    points = []
    for results in zip(*runs, strict=True):
        (step,) = {result.step for result in results}
        shares = [other_domains(result.counts, trained_on).share for result in results]
        points.append(CurvePoint(step, sum(shares) / len(shares), min(shares), max(shares)))
    return Curve(label, tuple(points))


def distinct_names(directories: Sequence[Path]) -> list[str]:
    """A label for each of different directories: its name, with as many parents as tell it from the others."""
    parts = [directory.resolve().parts for directory in directories]

    labels = []
    for own in parts:
        lengths = range(1, len(own) + 1)
        unique = (n for n in lengths if sum(other[-n:] == own[-n:] for other in parts) == 1)
        labels.append("/".join(own[-next(unique, len(own)) :]))
    return labels


def _proportion(domains: str, questions: Sequence[QuestionCounts]) -> Proportion:
    counts = Counts([question.harmful for question in questions], [question.scored for question in questions])
    interval = posterior_interval(counts)
    n = sum(question.n for question in questions)
    harmful, scored = sum(counts.successes), sum(counts.trials)
    return Proportion(domains, len(questions), n, scored, harmful, counts.share, interval.low, interval.high)
