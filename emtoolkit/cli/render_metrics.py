"""What `emtoolkit metrics` prints: the EM rates of scored answers and their paired differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType

from emtoolkit.cli.layout import Column, Records, facts, line, prose
from emtoolkit.cli.render import as_json
from emtoolkit.evaluation.intervals import Difference, Interval
from emtoolkit.evaluation.metrics import BROKEN_BELOW, DEFINITIONS, EmRate, ScoredAnswer, Summary
from emtoolkit.evaluation.scored_files import question_families

Differences = Mapping[str, tuple[Difference, tuple[str, ...]]]
# Below this number the interval for new questions is wide however many answers there are.
_FEW_QUESTIONS = 24


def metrics_text(summary: Summary, answers: Sequence[ScoredAnswer], differences: Differences | None) -> RenderableType:
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
            "broken" if summary.broken else percent(rate.rate),
            interval_text(rate.new_questions),
            interval_text(rate.new_questions_logit_t),
            interval_text(rate.these_questions),
        ]
        for rate in summary.rates
    ]
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(summary.statuses.items()))
    parts: list[RenderableType] = [
        facts(
            [
                ("answers", f"{summary.answers} ({statuses})"),
                ("questions", f"{summary.questions} in {summary.clusters} clusters"),
                ("coherent", f"{summary.coherent} ({percent(summary.coherence)} %)"),
            ]
        ),
        line(""),
        Records(columns, rows),
    ]
    if differences is not None:
        parts += [line(""), _difference_table(differences)]
        unpaired = next(iter(differences.values()))[1]
        if unpaired:
            parts.append(prose(f"Only in one of the files, or without a score, and left out: {', '.join(unpaired)}."))
    parts += [line(""), *(prose(f"{name}: {definition.sentence}.") for name, definition in DEFINITIONS.items())]
    parts += [prose(note) for note in _notes(summary, answers)]
    return Group(*parts)


def metrics_json(summary: Summary, differences: Differences | None) -> str:
    """The same as JSON; NaN is null."""
    value: dict[str, Any] = {
        "answers": summary.answers,
        "questions": summary.questions,
        "clusters": summary.clusters,
        "statuses": dict(summary.statuses),
        "coherent": summary.coherent,
        "broken": summary.broken,
        "rates": [_rate_json(rate) for rate in summary.rates],
    }
    if differences is not None:
        value["differences"] = [
            {"definition": name, "left_out": list(unpaired)} | without_nan(asdict(difference))
            for name, (difference, unpaired) in differences.items()
        ]
    return as_json(value)


def _difference_table(differences: Differences) -> RenderableType:
    columns = [Column("definition", "left"), Column("difference, points"), Column("95 % interval"), Column("questions")]
    rows: list[list[RenderableType]] = [
        [
            name,
            f"{100 * difference.mean:+.2f} ± {100 * difference.half_width:.2f}",
            f"{100 * difference.interval.low:+.2f} to {100 * difference.interval.high:+.2f}",
            str(difference.questions),
        ]
        for name, (difference, _) in differences.items()
    ]
    return Records(columns, rows)


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


def _rate_json(rate: EmRate) -> dict[str, Any]:
    return dict(without_nan(asdict(rate)))


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
