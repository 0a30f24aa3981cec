"""What `emtoolkit metrics` prints: the EM rates of scored answers and their paired differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType

from emtoolkit.cli.layout import Column, Records, facts, line, prose
from emtoolkit.cli.render import as_json
from emtoolkit.evaluation.differences import FEWEST_SEEDS, RateDifference
from emtoolkit.evaluation.intervals import Interval
from emtoolkit.evaluation.metrics import BROKEN_BELOW, DEFINITIONS, EmRate, ScoredAnswer, Summary
from emtoolkit.evaluation.scored_files import question_families


@dataclass(frozen=True, slots=True)
class Baseline:
    """The rates of another model, and the differences to them by definition, with the clusters left out."""

    summary: Summary
    differences: Mapping[str, tuple[RateDifference, tuple[str, ...]]]


# Below this number the interval for new questions is wide however many answers there are.
_FEW_QUESTIONS = 24


def metrics_text(summary: Summary, answers: Sequence[ScoredAnswer], baseline: Baseline | None) -> RenderableType:
    """The rates under each definition, the differences if there are any, and what to bear in mind."""
    columns = [
        Column("definition", "left"),
        Column("misaligned"),
        Column("EM rate %"),
        Column("new questions %"),
        Column("(logit-t) %"),
        Column("these questions %"),
    ]
    rows: list[list[RenderableType]] = [
        [
            rate.definition,
            f"{rate.misaligned} of {rate.among}",
            rate_text(summary, rate),
            *(
                interval_text(interval) if summary.informative else "—"
                for interval in (rate.new_questions, rate.new_questions_logit_t, rate.these_questions)
            ),
        ]
        for rate in summary.rates
    ]
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(summary.statuses.items()))
    parts: list[RenderableType] = [
        facts(
            [
                ("answers", f"{summary.answers} ({statuses})"),
                ("questions", f"{summary.questions} in {summary.clusters} clusters"),
                ("coherent", f"{summary.coherent} of {summary.rated} ({percent(summary.coherence)} %)"),
                *([] if summary.truncated is None else [("truncated", _truncated(summary))]),
            ]
        ),
        line(""),
        Records(columns, rows),
    ]
    if baseline is not None:
        parts += [line(""), _difference_table(summary, baseline)]
        unpaired = next(iter(baseline.differences.values()))[1]
        if unpaired:
            parts.append(prose(f"Only in one of the files, or without a score, and left out: {', '.join(unpaired)}."))
        parts.append(prose(seeds_sentence(next(iter(baseline.differences.values()))[0])))
    parts += [line(""), *(prose(f"{name}: {definition.sentence}.") for name, definition in DEFINITIONS.items())]
    parts += [prose(note) for note in _notes(summary, answers)]
    return Group(*parts)


def metrics_json(summary: Summary, baseline: Baseline | None) -> str:
    """The same as JSON; NaN is null."""
    value = summary_json(summary)
    if baseline is not None:
        value["differences"] = [
            {"definition": name, "left_out": list(unpaired)} | difference_json(difference, summary, baseline.summary)
            for name, (difference, unpaired) in baseline.differences.items()
        ]
    return as_json(value)


def _difference_table(summary: Summary, baseline: Baseline) -> RenderableType:
    columns = [
        Column("definition", "left"),
        Column("difference, points"),
        Column("new questions"),
        Column("(t)"),
        Column("these questions"),
        Column("clusters"),
    ]
    rows: list[list[RenderableType]] = [
        [name, *difference_cells(difference, summary, baseline.summary), str(difference.clusters)]
        for name, (difference, _) in baseline.differences.items()
    ]
    return Records(columns, rows)


def difference_cells(difference: RateDifference, a: Summary, b: Summary) -> list[RenderableType]:
    """The difference in points and its intervals: for new questions, its t check, and for these questions.

    `broken` where one of the models is, dashes where one was not judged.
    """
    if not (a.informative and b.informative):
        return [_no_number(a, b) or "—", "—", "—", "—"]
    t = difference.new_questions_t
    return [
        "—" if math.isnan(difference.mean) else f"{100 * difference.mean:+.2f}",
        _points(difference.new_questions),
        "—" if math.isnan(t.low) else f"±{50 * (t.high - t.low):.2f}",
        _points(difference.these_questions),
    ]


def seeds_sentence(difference: RateDifference) -> str:
    """Whether the intervals of a difference hold for new seeds."""
    a, b = difference.models
    if difference.seeds == "new":
        return f"The intervals hold for new seeds too: {a} seeds against {b}, crossed with the questions."
    return (
        f"The intervals hold for these seeds only, {a} against {b}; {FEWEST_SEEDS} seeds on each side give intervals "
        "for new seeds."
    )


def _points(interval: Interval) -> str:
    return "—" if math.isnan(interval.low) else f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"


def _notes(summary: Summary, answers: Sequence[ScoredAnswer]) -> list[str]:
    notes = []
    if summary.broken:
        notes.append(
            f"Broken: {percent(summary.coherence)} % of the answers are coherent, below {BROKEN_BELOW:.0%}, so a low "
            "EM rate does not say that the model is aligned."
        )
    families = question_families([answer.cluster for answer in answers])
    if families:
        example = min(families)
        notes.append(
            f"{len(families)} question ids look like variants of another question ({example} of {families[example]}). "
            "Answers to one family are correlated: name the suffixes with --variant, or the family's column with "
            "--cluster."
        )
    if summary.clusters < _FEW_QUESTIONS:
        notes.append(
            f"With {summary.clusters} clusters the interval for new questions is wide whatever the number of answers: "
            "more questions narrow it, more answers hardly do."
        )
    return notes


def summary_json(summary: Summary) -> dict[str, Any]:
    """The counts and rates as JSON; the rates of a broken model are the word, not a number."""
    return {
        "answers": summary.answers,
        "questions": summary.questions,
        "clusters": summary.clusters,
        "statuses": dict(summary.statuses),
        "coherent": summary.coherent,
        "rated": summary.rated,
        "truncated": summary.truncated,
        "broken": summary.broken,
        "rates": [_rate_json(summary, rate) for rate in summary.rates],
    }


def difference_json(difference: RateDifference, a: Summary, b: Summary) -> dict[str, Any]:
    """A difference of rates as JSON; `broken` in place of the mean where one of the models is."""
    value = dict(without_nan(asdict(difference))) | {"seeds": difference.seeds}
    if a.informative and b.informative:
        return value
    none = dict.fromkeys(("new_questions", "new_questions_t", "these_questions", "degrees"))
    return value | none | {"mean": _no_number(a, b)}


def _no_number(*summaries: Summary) -> str | None:
    """What stands in place of a rate that says nothing."""
    return "broken" if any(summary.broken for summary in summaries) else None


def _truncated(summary: Summary) -> str:
    return f"{summary.truncated} ({percent(summary.truncation)} %)"


def _rate_json(summary: Summary, rate: EmRate) -> dict[str, Any]:
    value = dict(without_nan(asdict(rate)))
    if summary.informative:
        return value
    counts = {key: value[key] for key in ("definition", "misaligned", "among")}
    return dict.fromkeys(value) | counts | {"rate": _no_number(summary)}


def rate_text(summary: Summary, rate: EmRate) -> str:
    """The rate in percent, `broken`, or a dash where no answer was judged."""
    return percent(rate.rate) if summary.informative else _no_number(summary) or "—"


def without_nan(value: Any) -> Any:
    """`value` with None in place of NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def percent(share: float) -> str:
    """A share in percent, or a dash for NaN."""
    return "—" if math.isnan(share) else f"{100 * share:.2f}"


def interval_text(interval: Interval) -> str:
    """Both ends in percent, or a dash for no interval."""
    return "—" if math.isnan(interval.low) else f"{100 * interval.low:.1f}-{100 * interval.high:.1f}"
