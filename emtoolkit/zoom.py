"""`emtoolkit zoom`: an onset's bracket, narrowed by steps that are made again and evaluated inside it.

Training dominates the cost before the first evaluation, and evaluation after it. So all steps that the bracket may need
are trained at once, for at most its width from a resume state at its left end, however many of them are saved; and of
these steps only those are evaluated that halve the bracket.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

from emtoolkit.analysis.onset import Onset
from emtoolkit.analysis.onset_results import Event, seed_onset
from emtoolkit.evaluation.decided import Inference
from emtoolkit.evaluation.result_files import StoredEvaluation

# An existing step is used in place of new ones if it leaves at most this share of a gap on each side.
_WORTH_EVALUATING = 0.75


@dataclass(frozen=True, slots=True)
class Round:
    """The onset after the evaluation of `evaluated`."""

    evaluated: tuple[int, ...]
    onset: Onset


@dataclass(frozen=True, slots=True)
class Zoomed:
    """The result: the rounds, the steps that were made again, and why it ended.

    `ended_by` is `width` where the bracket is narrow enough; `evaluation` where every gap between evaluated steps in it
    is, and the limits at those steps hold the threshold; `no_bracket` where the onset is not between two steps.
    """

    event: Event
    inference: Inference
    until: int
    rounds: tuple[Round, ...]
    made: tuple[int, ...]
    trained_steps: int
    ended_by: Literal["width", "evaluation", "no_bracket"]

    @property
    def onset(self) -> Onset:
        """The onset at the end."""
        return self.rounds[-1].onset

    @property
    def evaluated(self) -> tuple[int, ...]:
        """The steps that were evaluated after the first round, in their order."""
        return tuple(step for each in self.rounds[1:] for step in each.evaluated)


class Work(Protocol):
    """The evaluations and trainings of a zoom on one trajectory; finished ones are not repeated.

    Each method raises a `UserError` if a step cannot be evaluated or made.
    """

    def existing(self) -> Collection[int]:
        """The steps that have a checkpoint now."""

    def evaluate(self, steps: Sequence[int]) -> StoredEvaluation:
        """Evaluate `steps`, and return all that is evaluated."""

    def make(self, steps: Sequence[int]) -> int:
        """Make missing steps again, and return how many optimizer steps that took."""


def zoom(event: Event, until: int, coarse: Sequence[int], *, inference: Inference, work: Work) -> Zoomed:
    """Narrow the bracket of `event` to at most `until` steps, or until only the evaluation is uncertain.

    `coarse` are the steps of the first evaluation.

    Raises:
        UserError: a step cannot be evaluated or made.
    """
    rounds: list[Round] = []
    made: list[int] = []
    trained, following = 0, tuple(coarse)
    while True:
        evaluation = work.evaluate(following)
        onset = _onset(evaluation, event, inference)
        rounds.append(Round(following, onset))
        ended_by = _why_ended(onset, until, evaluation.steps)
        if ended_by is not None:
            return Zoomed(event, inference, until, tuple(rounds), tuple(made), trained, ended_by)
        step = next_step(onset, until, evaluation.steps, work.existing())
        if step is None:
            missing = steps_between(onset, until, evaluation.steps, work.existing())
            trained += work.make(missing)
            made += missing
            step = next_step(onset, until, evaluation.steps, work.existing())
        following = (step,) if step is not None else ()


def next_step(onset: Onset, until: int, evaluated: Collection[int], existing: Collection[int]) -> int | None:
    """The step of `existing` that halves the widest gap in the bracket best; None if none is near its middle."""
    left, right = max(gaps(onset, evaluated), key=lambda gap: (gap[1] - gap[0], -gap[0]))
    inside = [step for step in existing if left < step < right]
    best = min(inside, key=lambda step: (abs(2 * step - left - right), step), default=None)
    if best is None:
        return None
    return best if max(best - left, right - best) <= max(_WORTH_EVALUATING * (right - left), until) else None


def steps_between(onset: Onset, until: int, evaluated: Collection[int], existing: Collection[int]) -> tuple[int, ...]:
    """The missing steps, `until` apart, of every gap in the bracket that is wider than `until`."""
    wanted = (
        step
        for left, right in gaps(onset, evaluated)
        if right - left > until
        for step in range(left + until, right, until)
    )
    return tuple(step for step in wanted if step not in existing)


def gaps(onset: Onset, evaluated: Collection[int]) -> Iterator[tuple[int, int]]:
    """The pairs of neighbouring evaluated steps in the bracket of an onset that was seen."""
    lower, upper = onset.bracket.lower, onset.bracket.upper
    if lower is None or upper is None:
        return iter(())
    return pairwise(sorted(step for step in evaluated if lower <= step <= upper))


def _onset(evaluation: StoredEvaluation, event: Event, inference: Inference) -> Onset:
    found = seed_onset(evaluation, event)
    return found.new_questions if inference == "new_questions" else found.these_questions


def _why_ended(
    onset: Onset, until: int, evaluated: Collection[int]
) -> Literal["width", "evaluation", "no_bracket"] | None:
    width = onset.bracket.width
    if onset.status != "seen" or width is None:
        return "no_bracket"
    if width <= until:
        return "width"
    return None if any(right - left > until for left, right in gaps(onset, evaluated)) else "evaluation"
