"""Drift of a judge: a frozen set of answers is judged anew in every session and compared with the first session.

A hosted model can change behind its name, and stored verdicts hide that: an evaluation that goes on weeks later would
join the scores of two judges. The shift is measured on the same answers, both of the mean scores and of the EM rate,
because neither shows the other: a judge can move the mean by points and flip next to no answer at the threshold, or
keep the mean and flip many.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from emtoolkit.errors import CheckpointError
from emtoolkit.evaluation.given_answers import AnswerColumns, read_given_answers
from emtoolkit.evaluation.identity import digest_of
from emtoolkit.evaluation.intervals import Difference, paired_difference
from emtoolkit.evaluation.json_values import without_nan
from emtoolkit.evaluation.judges import Judge, JudgedAnswer, JudgeStoppedError, NamedByServer, Verdict
from emtoolkit.evaluation.judging import answer_name, judge_id, judge_key
from emtoolkit.evaluation.metrics import DEFINITIONS, EmDefinition, ScoredAnswer
from emtoolkit.evaluation.questions import Question
from emtoolkit.evaluation.store import Store
from emtoolkit.progress import Progress, counting, silent

_AT_A_TIME = 64
_REFERENCE = "reference"
# A smaller shift of a mean, in points of 100, is the rounding of a server.
_ROUNDING = 0.05
# From this share of answers on the other side of the threshold on, a judge has changed whatever its means say.
_MANY_FLIPPED = 0.05


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Frozen answers; `verdicts` are those in the file where they are this judge's, else empty."""

    path: Path
    answers: tuple[JudgedAnswer, ...]
    verdicts: tuple[Verdict, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 in hex over questions, answers and prompts in their order."""
        return digest_of([answer_name(answer) for answer in self.answers])


@dataclass(frozen=True, slots=True)
class Shift:
    """The mean of a score, or a rate, on the same answers before and now, with the interval of their difference."""

    before: float
    now: float
    difference: Difference


@dataclass(frozen=True, slots=True)
class CalibrationSession:
    """The result of one session; without a `reference`, in the first session of a judge, `shifts` is empty.

    `shifts` has the mean scores `aligned` and `coherent` in points, the share of answers with a score as `scored`, and
    the EM rate of each definition. `flipped` has the share of answers that each definition counts otherwise than
    before. Intervals hold for these answers: the unit is the answer.
    """

    set_digest: str
    judge: str
    answers: int
    day: str
    reference: str | None
    answered_as: tuple[str, ...]
    shifts: Mapping[str, Shift]
    flipped: Mapping[str, float]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The session as a JSON object; NaN is null."""
        shifts = {name: without_nan(asdict(shift)) for name, shift in self.shifts.items()}
        return asdict(self) | {"shifts": shifts}


def read_calibration(path: Path, judge: Judge, questions: Sequence[Question] = ()) -> CalibrationSet:
    """The calibration set in `path`, a file as `emtoolkit judge` reads or writes it.

    Answers to one of `questions` are judged by the prompts of the question. The scores in the file are the reference if
    its column `judge` names this judge; otherwise the first session is.

    Raises:
        DataError: the file cannot be read, or has no questions and answers.
    """
    given = read_given_answers(path, AnswerColumns(), None)
    prompts = {text: question.judge_prompts or {} for question in questions for text in question.paraphrases}
    answers = tuple(replace(each, prompts=prompts.get(each.question, each.prompts)) for each in given.answers)
    scored = all(row.get("judge") == judge_id(judge) for row in given.rows)
    return CalibrationSet(path, answers, tuple(map(_verdict, given.rows)) if scored else ())


def calibrate(
    calibration: CalibrationSet, judge: Judge, store: Store, progress: Progress = silent, today: date | None = None
) -> CalibrationSession:
    """Judge the set anew, not from stored verdicts, and compare the verdicts with the reference.

    Raises:
        JudgeStoppedError: the judge cannot go on.
        CheckpointError: the store cannot be read or written.
    """
    now = _judged_anew(calibration, judge, progress)
    answered_as = tuple(sorted(judge.answered_as)) if isinstance(judge, NamedByServer) else ()
    key = digest_of([judge_key(judge), calibration.digest])
    reference, before, model_before = _reference(calibration, store.read(key).get(_REFERENCE))
    session = CalibrationSession(
        set_digest=calibration.digest,
        judge=judge_id(judge),
        answers=len(now),
        day=(today or date.today()).isoformat(),
        reference=reference,
        answered_as=answered_as,
        shifts=shifts_between(before, now),
        flipped={name: _flipped(before, now, definition) for name, definition in DEFINITIONS.items()} if before else {},
    )
    notes = _drift(session, calibration.path)
    failed = sum(verdict.status == "judge_error" for verdict in now)
    if not before and failed:
        notes.append(
            f"--calibration {calibration.path}: the judge failed on {failed} answers, so drift is not measured"
        )
    elif not before:
        first = {"day": session.day, "answered_as": list(answered_as), "verdicts": [each.to_json() for each in now]}
        store.add(key, {_REFERENCE: first})
    if model_before and answered_as and set(model_before) != set(answered_as):
        notes.append(
            f"judge {judge.name}: the server names its model {', '.join(answered_as)}, and named it "
            f"{', '.join(model_before)} in {reference}"
        )
    return replace(session, notes=tuple(notes))


def shifts_between(before: Sequence[Verdict], now: Sequence[Verdict]) -> dict[str, Shift]:
    """The shift of each mean and rate from `before` to `now`, verdicts on the same answers in the same order.

    A mean is over the answers with that score in both sessions, an EM rate over those in the denominator of both.
    """
    if not before:
        return {}
    found = {
        "aligned": _shift(before, now, lambda verdict: verdict.aligned),
        "coherent": _shift(before, now, lambda verdict: verdict.coherent),
        "scored": _shift(before, now, lambda verdict: float(verdict.aligned is not None)),
    }
    return found | {name: _shift(before, now, _counted(definition)) for name, definition in DEFINITIONS.items()}


def points(difference: Difference, scale: float) -> str:
    """`difference` times `scale` in words, with its 95 % interval."""
    if not difference.questions:
        return "on no common answer"
    low, high = scale * difference.interval.low, scale * difference.interval.high
    mean = f"{scale * difference.mean:+.1f} points"
    return mean if math.isnan(low) else f"{mean} ({low:+.1f} to {high:+.1f})"


def _shift(before: Sequence[Verdict], now: Sequence[Verdict], value: Callable[[Verdict], float | None]) -> Shift:
    both = [(value(old), value(new)) for old, new in zip(before, now, strict=True)]
    pairs = [(a, b) for a, b in both if a is not None and b is not None]
    if not pairs:
        return Shift(float("nan"), float("nan"), paired_difference([]))
    old, new = (sum(each) / len(pairs) for each in zip(*pairs, strict=True))
    return Shift(old, new, paired_difference([b - a for a, b in pairs]))


def _counted(definition: EmDefinition) -> Callable[[Verdict], float | None]:
    """1 for a misaligned answer, 0 for another, None for one outside the denominator."""

    def value(verdict: Verdict) -> float | None:
        misaligned, among = definition.counts(ScoredAnswer("", "", verdict.aligned, verdict.coherent, verdict.status))
        return float(misaligned) if among else None

    return value


def _flipped(before: Sequence[Verdict], now: Sequence[Verdict], definition: EmDefinition) -> float:
    value = _counted(definition)
    pairs = [(value(a), value(b)) for a, b in zip(before, now, strict=False)]
    return sum(a != b for a, b in pairs) / len(pairs) if pairs else 0.0


def _drift(session: CalibrationSession, path: Path) -> list[str]:
    """One sentence if the judge is not the one that it was, and nothing otherwise."""
    found = []
    for name, unit in (("aligned", "mean alignment"), ("coherent", "mean coherence")):
        shift = session.shifts.get(name)
        if shift and _is_shift(shift.difference, _ROUNDING):
            found.append(f"{unit} {points(shift.difference, 1)}")
    for name in DEFINITIONS:
        shift = session.shifts.get(name)
        if shift and _is_shift(shift.difference, 0.0):
            found.append(f"EM rate ({name}) {points(shift.difference, 100)}")
    scored = session.shifts.get("scored")
    if scored and (_is_shift(scored.difference, 0.0) or not scored.now):
        found.append(f"{100 * scored.now:.0f} % of the answers have a score, {100 * scored.before:.0f} % had one")
    most = max(session.flipped, key=session.flipped.__getitem__, default=None)
    if most is not None and session.flipped[most] >= _MANY_FLIPPED:
        found.append(f"{100 * session.flipped[most]:.0f} % of the answers count otherwise ({most})")
    if not found:
        return []
    return [
        f"judge {session.judge} differs from {session.reference} on the {session.answers} answers in {path}: "
        f"{'; '.join(found)}; verdicts from before and after make no curve together"
    ]


def _is_shift(difference: Difference, least: float) -> bool:
    low, high = difference.interval.low, difference.interval.high
    return (low > 0 or high < 0) and abs(difference.mean) > least


def _judged_anew(calibration: CalibrationSet, judge: Judge, progress: Progress) -> list[Verdict]:
    count = counting(progress, "judging the calibration set", len(calibration.answers))
    verdicts: list[Verdict] = []
    for start in range(0, len(calibration.answers), _AT_A_TIME):
        part = calibration.answers[start : start + _AT_A_TIME]
        full = [answer for answer in part if answer.text.strip()]
        try:
            found = iter(judge.judge(full))
        except JudgeStoppedError as error:
            raise JudgeStoppedError(f"--calibration {calibration.path}: {error}", {}) from None
        verdicts += [next(found) if answer.text.strip() else Verdict("empty") for answer in part]
        count(len(part))
    return verdicts


def _reference(
    calibration: CalibrationSet, stored: Mapping[str, Any] | None
) -> tuple[str | None, Sequence[Verdict], Sequence[str]]:
    """The reference in words, its verdicts, and the names that the server gave its model."""
    if calibration.verdicts:
        return f"the scores in {calibration.path}", calibration.verdicts, ()
    if stored is None:
        return None, (), ()
    try:
        verdicts = tuple(Verdict.from_json(each) for each in stored["verdicts"])
        return f"its session of {stored['day']}", verdicts, tuple(stored["answered_as"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{calibration.path}: its stored verdicts are damaged ({error})") from None


def _verdict(row: Mapping[str, Any]) -> Verdict:
    values = {name: row.get(name) for name in ("aligned", "coherent", "mass", "below_30")}
    return Verdict(row["status"], **{k: None if v in (None, "") else float(v) for k, v in values.items()})
