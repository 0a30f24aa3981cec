"""The output of `emtoolkit metrics`: the EM rates of scored answers and their paired differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from rich.console import Group, RenderableType

from emtoolkit.cli.layout import Column, Records, facts, here, line, prose
from emtoolkit.cli.render import as_json
from emtoolkit.evaluation.correction import CorrectedRate
from emtoolkit.evaluation.differences import FEWEST_SEEDS, RateDifference
from emtoolkit.evaluation.intervals import Interval
from emtoolkit.evaluation.json_values import without_nan as without_nan
from emtoolkit.evaluation.metrics import BROKEN_BELOW, DEFINITIONS, EmRate, ScoredAnswer, Summary, summarise
from emtoolkit.evaluation.scored_files import ScoredFile, question_families

# The definition of the table of several files; the others are in the JSON.
_SHOWN = "betley"
# Below this number the interval for new questions is wide however many answers there are.
_FEW_QUESTIONS = 24


@dataclass(frozen=True)
class ScoredModels:
    """The files of one side and of the other, and the differences by definition, with the clusters left out."""

    files: tuple[ScoredFile, ...]
    others: tuple[ScoredFile, ...] = ()
    differences: Mapping[str, tuple[RateDifference, tuple[str, ...]]] | None = None
    corrected: Sequence[CorrectedRate] | None = None

    @cached_property
    def summaries(self) -> tuple[Summary, ...]:
        """The summary of each file."""
        return tuple(summarise(each.answers) for each in self.files)

    @cached_property
    def other_summaries(self) -> tuple[Summary, ...]:
        """The summary of each file of the other side."""
        return tuple(summarise(each.answers) for each in self.others)


def metrics_text(models: ScoredModels) -> RenderableType:
    """The rates under each definition, the differences if there are any, and what to bear in mind."""
    answers = [answer for each in models.files for answer in each.answers]
    if len(models.files) == 1 and len(models.others) < 2:
        parts = _one_model(models.summaries[0])
    else:
        parts = [_table_of_files(models)]
    if models.differences is not None:
        parts += [line(""), _difference_table(models)]
        difference, unpaired = next(iter(models.differences.values()))
        if unpaired:
            parts.append(prose(f"Only in one of the files, or without a score, and left out: {', '.join(unpaired)}."))
        parts.append(prose(seeds_sentence(difference)))
    if models.corrected:
        parts += [line(""), _corrected_table(models.corrected), prose("Without the errors of the judge on the labels.")]
    parts += [line(""), *(prose(f"{name}: {definition.sentence}.") for name, definition in DEFINITIONS.items())]
    parts += [prose(note) for note in _notes(models.summaries[0], answers)]
    return Group(*parts)


def _one_model(summary: Summary) -> list[RenderableType]:
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
    return [
        facts(
            [
                ("answers", f"{summary.answers} ({_statuses(summary)})"),
                ("questions", f"{summary.questions} in {summary.clusters} clusters"),
                ("coherent", f"{summary.coherent} of {summary.rated} ({percent(summary.coherence)} %)"),
                *([] if summary.truncated is None else [("truncated", _truncated(summary))]),
            ]
        ),
        line(""),
        Records(columns, rows),
    ]


def _table_of_files(models: ScoredModels) -> RenderableType:
    columns = [
        Column("file", "left", at_least=12),
        Column("answers", "left", at_least=8),
        Column("misaligned"),
        Column("EM rate %"),
        Column("new questions %"),
        Column("these questions %"),
    ]
    rows: list[list[RenderableType]] = []
    both = [*zip(models.files, models.summaries, strict=True), *zip(models.others, models.other_summaries, strict=True)]
    for file, summary in both:
        rate = next(each for each in summary.rates if each.definition == _SHOWN)
        intervals = (rate.new_questions, rate.these_questions)
        rows.append(
            [
                here(file.path),
                _statuses(summary),
                f"{rate.misaligned} of {rate.among}",
                rate_text(summary, rate),
                *(interval_text(each) if summary.informative else "—" for each in intervals),
            ]
        )
    return Group(Records(columns, rows), prose(f"EM rate: {_SHOWN}; --json has each definition."))


def _statuses(summary: Summary) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(summary.statuses.items()))


def metrics_json(models: ScoredModels) -> str:
    """The same as JSON; NaN is null. One file gives its summary, several a list of them."""
    summaries = [
        {"file": str(file.path)} | summary_json(summary)
        for file, summary in zip(models.files, models.summaries, strict=True)
    ]
    value = summary_json(models.summaries[0]) if len(models.files) == 1 else {"models": summaries}
    if models.differences is not None:
        value["against"] = [
            {"file": str(file.path)} | summary_json(summary)
            for file, summary in zip(models.others, models.other_summaries, strict=True)
        ]
        a, b = _worst(models.summaries), _worst(models.other_summaries)
        value["differences"] = [
            {"definition": name, "left_out": list(unpaired)} | difference_json(difference, a, b)
            for name, (difference, unpaired) in models.differences.items()
        ]
    if models.corrected is not None:
        value["corrected"] = [
            dict(without_nan(asdict(each)))
            | {"specificity": each.errors.specificity, "sensitivity": each.errors.sensitivity}
            for each in models.corrected
        ]
    return as_json(value)


def _worst(summaries: Sequence[Summary]) -> Summary:
    """A summary whose rates say nothing, if there is one: then a mean over the models says nothing."""
    return next((each for each in summaries if not each.informative), summaries[0])


def _corrected_table(corrected: Sequence[CorrectedRate]) -> RenderableType:
    columns = [
        Column("definition", "left"),
        Column("corrected rate %"),
        Column("new questions %"),
        Column("these questions %"),
        Column("aligned kept"),
        Column("misaligned found"),
    ]
    rows: list[list[RenderableType]] = [
        [
            each.definition,
            percent(each.rate),
            interval_text(each.new_questions),
            interval_text(each.these_questions),
            f"{each.errors.true_negatives} of {each.errors.negatives}",
            f"{each.errors.true_positives} of {each.errors.positives}",
        ]
        for each in corrected
    ]
    return Records(columns, rows)


def _difference_table(models: ScoredModels) -> RenderableType:
    columns = [
        Column("definition", "left"),
        Column("difference, points"),
        Column("new questions"),
        Column("(t)"),
        Column("these questions"),
        Column("clusters"),
    ]
    a, b = _worst(models.summaries), _worst(models.other_summaries)
    rows: list[list[RenderableType]] = [
        [name, *difference_cells(difference, a, b), str(difference.clusters)]
        for name, (difference, _) in (models.differences or {}).items()
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
    """The text in place of a rate that says nothing."""
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


def percent(share: float) -> str:
    """A share in percent, or a dash for NaN."""
    return "—" if math.isnan(share) else f"{100 * share:.2f}"


def interval_text(interval: Interval) -> str:
    """Both ends in percent, or a dash for no interval."""
    return "—" if math.isnan(interval.low) else f"{100 * interval.low:.1f}-{100 * interval.high:.1f}"
