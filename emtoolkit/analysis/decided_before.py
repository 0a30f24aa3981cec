"""Whether an analysis is the one that was decided before the evaluation, and what is exploratory in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emtoolkit.analysis.onset_results import Event, evaluation_directories
from emtoolkit.evaluation.decided import AnalysisRecord, DecidedAnalysis, read_records
from emtoolkit.evaluation.result_files import StoredEvaluation, read_evaluation
from emtoolkit.schedules.steps import elided


@dataclass(frozen=True, slots=True)
class Standing:
    """The analysis of one evaluation: its record, if there is one, and the reasons that make it exploratory."""

    directory: Path
    analysis: DecidedAnalysis
    record: AnalysisRecord | None
    exploratory: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The digest, the time of the record, and what is exploratory."""
        when = "not recorded" if self.record is None else f"recorded {self.record.time}"
        decides = self.analysis.inference.replace("_", " ")
        text = f"analysis SHA-256 {self.analysis.digest}, {when}; the limits for {decides} decide"
        if not self.exploratory:
            return f"{text}; as decided"
        return f"{text}; exploratory: {'; '.join(self.exploratory)}"


def standings(
    places: Sequence[str | Path],
    event: Event,
    decided: DecidedAnalysis | None,
    schedules: Sequence[str] = (),
    other: Event | None = None,
) -> tuple[Standing, ...]:
    """The standing of each evaluation at `places`; none where no analysis is given or recorded.

    `schedules` and the event `other` are analysed beside `event`.
    """
    evaluations = [read_evaluation(each) for place in places for each in evaluation_directories(place)]
    found = [_standing(each, event, decided, schedules, other) for each in evaluations]
    return tuple(each for each in found if each is not None)


def _standing(
    evaluation: StoredEvaluation,
    event: Event,
    decided: DecidedAnalysis | None,
    schedules: Sequence[str],
    other: Event | None,
) -> Standing | None:
    records = read_records(evaluation.directory)
    if decided is None and not records:
        return None
    analysis = decided or records[0].analysis
    record = next((each for each in records if each.analysis.digest == analysis.digest), None)
    reasons = _late(record, records) + _changed(analysis, event)
    asked = {row.question for row in evaluation.all_rows}
    if analysis.questions is not None and asked != {*analysis.questions}:
        reasons.append(f"{len(asked)} questions in place of the {len(analysis.questions)} that were decided")
    reasons += [f"schedule {each} was added" for each in schedules if each not in analysis.schedules]
    if other is not None:
        reasons.append(f"the order to {other.metric} was added")
    return Standing(evaluation.directory, analysis, record, tuple(reasons))


def _late(record: AnalysisRecord | None, records: Sequence[AnalysisRecord]) -> list[str]:
    if record is None:
        return ["the evaluation has no record of it"]
    reasons = []
    if record.steps_before:
        reasons.append(f"recorded after steps {elided(record.steps_before)} were evaluated")
    if record != records[0]:
        reasons.append(f"recorded after another analysis, SHA-256 {records[0].analysis.digest[:12]}")
    return reasons


def _changed(analysis: DecidedAnalysis, event: Event) -> list[str]:
    pairs = (
        ("metric", analysis.metric, event.metric),
        ("threshold", f"{analysis.threshold:g}", f"{event.threshold:g}"),
        ("curve", analysis.curve, event.kind),
        ("falls", str(analysis.falls).lower(), str(event.falls).lower()),
    )
    return [f"{name} {now} in place of {before}" for name, before, now in pairs if now != before]
