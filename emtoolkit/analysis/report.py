"""The report on evaluated trajectories: one HTML file that needs no network, no font and no library.

Everything that was written by somebody else (personas, questions, answers) is escaped, or reaches the page as JSON and
is put there as text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from emtoolkit.analysis.chart import legend, line_chart
from emtoolkit.analysis.compare import Comparison, View, compare, verdict
from emtoolkit.analysis.decided_before import Standing, standings
from emtoolkit.analysis.dynamics import Dynamics, trajectory_dynamics
from emtoolkit.analysis.onset import Onset
from emtoolkit.analysis.onset_results import (
    Event,
    OnsetResult,
    base_of,
    check_asked_alike,
    data_of,
    evaluation_directories,
    onsets_in,
)
from emtoolkit.analysis.onset_text import event_text, onset_sentence
from emtoolkit.analysis.report_answers import answers_json, answers_of
from emtoolkit.analysis.report_charts import (
    Chart,
    answer_charts,
    companion_charts,
    onset_charts,
    rate_charts,
    weight_charts,
)
from emtoolkit.byte_sizes import format_size
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.errors import UserError
from emtoolkit.evaluation.decided import DecidedAnalysis
from emtoolkit.evaluation.metrics import summarise
from emtoolkit.evaluation.result_files import StoredEvaluation, read_evaluation
from emtoolkit.progress import Progress, silent
from emtoolkit.schedules.steps import elided
from emtoolkit.trajectory import Trajectory

# A table of everything needs more room than a page has.
_LONGEST_TABLE = 400


@dataclass(frozen=True, slots=True)
class Report:
    """The content of the report, before it is a page."""

    event: Event
    evaluations: tuple[StoredEvaluation, ...]
    results: tuple[OnsetResult, ...]
    comparisons: tuple[Comparison, ...]
    dynamics: tuple[Dynamics, ...]
    notes: tuple[str, ...]
    standings: tuple[Standing, ...] = ()


def gather(
    places: Sequence[str | Path],
    event: Event,
    schedules: Sequence[str] = (),
    *,
    decided: DecidedAnalysis | None = None,
    weights: bool = True,
    progress: Progress = silent,
) -> Report:
    """Everything that the report on the evaluations at `places` shows; with `weights` the dynamics of local runs.

    `decided` is the analysis that was decided before.

    Raises:
        UserError: there is no evaluation, they were not asked and judged alike, or they lack the metric.
    """
    evaluations = [read_evaluation(each) for place in places for each in evaluation_directories(place)]
    check_asked_alike(evaluations)
    # A persona on other data, such as the matched control, is no seed of the same training.
    groups: dict[tuple[str, str | None], list[StoredEvaluation]] = {}
    for each in evaluations:
        groups.setdefault((_first(each).persona, data_of(each)), []).append(each)
    results = tuple(onsets_in(group, event) for group in groups.values())
    notes = [*_differences(evaluations), *_reused(evaluations), *(note for result in results for note in result.notes)]
    comparisons = tuple(compare(each, schedules, event) for each in evaluations) if schedules else ()
    notes += [note for each in comparisons for note in each.notes]
    found = []
    for each in evaluations if weights else ():
        place = _first(each).trajectory
        if not Path(place).is_dir():
            notes.append(f"{place}: the checkpoints are not on this machine, so the weights are not compared")
            continue
        try:
            found.append(trajectory_dynamics(Trajectory.open(place), progress=progress))
            notes += found[-1].notes
        except UserError as error:
            notes.append(str(error))
    standing = standings(places, event, decided, schedules)
    return Report(event, tuple(evaluations), results, comparisons, tuple(found), tuple(dict.fromkeys(notes)), standing)


def _differences(evaluations: Sequence[StoredEvaluation]) -> list[str]:
    """A sentence for each way in which the evaluations say less together than their curves seem to say."""
    notes = [
        f"{each.directory}: only step {each.steps[0]} is evaluated, so there is no curve"
        for each in evaluations
        if len(each.steps) == 1
    ]
    for each in evaluations:
        for metric in dict.fromkeys(row.metric for row in each.measured):
            missing = sorted({*each.steps} - {row.step for row in each.measured if row.metric == metric})
            if missing:
                notes.append(f"{each.directory}: {metric} is not measured at steps {elided(missing)}")
    ends = {_first(each).persona: each.steps[-1] for each in evaluations}
    if len({*ends.values()}) > 1:
        ended = ", ".join(f"{persona} at step {step}" for persona, step in ends.items())
        notes.append(f"the personas are evaluated up to different steps: {ended}")
    bases = {base: each.directory for each in evaluations if (base := base_of(each)) is not None}
    if len(bases) > 1:
        named = ", ".join(f"{base} in {directory}" for base, directory in sorted(bases.items()))
        notes.append(f"the personas are of different base models ({named}), so curves differ by more than the persona")
    return notes


def _reused(evaluations: Sequence[StoredEvaluation]) -> list[str]:
    """A sentence for each local run that took checkpoints of an earlier training."""
    notes = []
    for place in dict.fromkeys(_first(each).trajectory for each in evaluations):
        steps = Publications.read(Path(place)).reused if Path(place).is_dir() else ()
        if steps:
            which = f"step {min(steps)} was" if len(steps) == 1 else f"steps {elided(sorted(steps))} were"
            notes.append(f"{place}: {which} saved by an earlier training, and reused")
    return notes


def page(report: Report, made_by: str) -> str:
    """The report as HTML; `made_by` names the program and its version."""
    resources = files("emtoolkit.analysis") / "page"
    style, script = ((resources / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    drawn = _figures(report)
    sections = [
        _when(report),
        *(drawn[title] for title in ("Curves", "Coherence", "Continuous companions")),
        _schedules(report),
        drawn["Weights"],
        answers_of(report.evaluations),
        _what_was_run(report, made_by),
    ]
    title = f"When did it appear? {event_text(report.event)}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # An icon that is asked for would be a request.
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f"<header><h1>When did it appear?</h1><p>The event: {escape(event_text(report.event))}.</p></header>"
        '<div class="controls"><label><input type="checkbox" id="log-axis">Logarithmic axis of steps</label></div>'
        f"<main>{''.join(sections)}</main>"
        f'<script type="application/json" id="answers-data">{answers_json(report.evaluations)}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of text; numbers are right-aligned. Rows beyond the four hundredth are counted."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows[:_LONGEST_TABLE])
    more = f'<p class="note">{len(rows) - _LONGEST_TABLE} more rows.</p>' if len(rows) > _LONGEST_TABLE else ""
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}'


def _cell(value: Any) -> str:
    if isinstance(value, int | float):
        text = "" if value != value else f"{value:.4g}" if isinstance(value, float) else str(value)
        return f'<td class="number">{text}</td>'
    return f"<td>{escape(str(value))}</td>"


def figure(chart: Chart) -> str:
    """A chart on both axes of steps, with its legend and the same values as a table."""
    linear, log = (
        line_chart(chart.title, chart.series, log_steps=log, percent=chart.percent, spans=chart.spans)
        for log in (False, True)
    )
    both = (
        f'<div class="scroll linear-steps" tabindex="0">{linear}</div>'
        f'<div class="scroll log-steps" tabindex="0">{log}</div>'
    )
    rows = [[each.name, mark.step, mark.value, mark.low, mark.high] for each in chart.series for mark in each.marks]
    values = table(["curve", "step", "value", "low", "high"], rows)
    return (
        f"<figure><h3>{escape(chart.title)}</h3>{legend([each.name for each in chart.series])}{both}"
        f"<figcaption>{escape(chart.caption)}</figcaption><details><summary>Values</summary>{values}</details></figure>"
    )


def charts(report: Report) -> dict[str, list[Chart]]:
    """The figures of the report by the title of their section."""
    return {
        "Curves": [*onset_charts(report.results), *rate_charts(report.evaluations, report.event)],
        "Coherence": answer_charts(report.evaluations),
        "Continuous companions": companion_charts(report.results),
        "Weights": weight_charts(report.dynamics),
    }


def _figures(report: Report) -> dict[str, str]:
    return {
        title: _section(title, "".join(map(figure, drawn))) if drawn else "" for title, drawn in charts(report).items()
    }


def _when(report: Report) -> str:
    rows, over = [], []
    for result in report.results:
        for seed in result.seeds:
            sentences = (onset_sentence(onset, report.event) for onset in (seed.new_questions, seed.these_questions))
            rows.append([seed.persona, seed.trajectory, *sentences])
        distributions = [each for each in (result.across_new_questions, result.across_these_questions) if each]
        if distributions:
            medians = (f"median in {each.median}" for each in distributions)
            over.append([result.seeds[0].persona, len(result.seeds), *medians])
    parts = [table(["persona", "trajectory", "new questions", "these questions"], rows)]
    if over:
        parts += ["<h3>Over seeds</h3>", table(["persona", "seeds", "new questions", "these questions"], over)]
    parts.append(
        '<p class="note">A bracket (a, b] is the last step whose 95 % limits exclude the event and the first step '
        "whose limits show it. New questions: other questions of the same kind; these questions: the same asked "
        "again.</p>"
    )
    if report.standings:
        decided = [[str(each.directory), *_decided(each)] for each in report.standings]
        columns = ["evaluation", "SHA-256", "recorded", "inference that decides", "exploratory"]
        parts += ["<h3>Analysis decided before</h3>", table(columns, decided)]
    return _section("Onset", "".join(parts))


def _decided(standing: Standing) -> list[str]:
    recorded = "not recorded" if standing.record is None else standing.record.time
    inference = standing.analysis.inference.replace("_", " ")
    return [standing.analysis.digest, recorded, inference, "; ".join(standing.exploratory) or "no"]


def _schedules(report: Report) -> str:
    parts = []
    for each in report.comparisons:
        rows = [_schedule_row(view, each) for view in (each.reference, *each.views)]
        columns = ["schedule", "checkpoints", "disk", "RMSE", "onset, new questions", "onset, these questions"]
        parts.append(f"<h3>{escape(f'{each.persona}, {each.trajectory}')}</h3>{table(columns, rows)}")
    return _section("What each schedule would have seen", "".join(parts)) if parts else ""


def _schedule_row(view: View, of: Comparison) -> list[Any]:
    disk = "—" if view.bytes is None else format_size(view.bytes)
    return [
        view.schedule,
        len(view.steps),
        disk,
        view.rmse,
        _seen(of.reference.new_questions, view.new_questions),
        _seen(of.reference.these_questions, view.these_questions),
    ]


def _seen(reference: Onset | None, onset: Onset | None) -> str:
    found = verdict(reference, onset)
    return f"{found} {onset.bracket}" if onset is not None and found in ("seen", "elsewhere") else found


def _what_was_run(report: Report, made_by: str) -> str:
    rows = []
    for each in report.evaluations:
        first = _first(each)
        statuses = summarise([row.scored() for row in each.rows], ()).statuses
        counted = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
        questions = len({row.question for row in each.rows}) or len({row.question for row in each.measured})
        engine, judge = (str(each.settings.get(name, "—")) for name in ("engine", "judge"))
        seeds = ", ".join(map(str, sorted({row.seed for row in each.rows})))
        described = [first.persona, first.trajectory, first.fingerprint[:8], len(each.steps), questions]
        rows.append([*described, counted or "no answers", engine, judge, seeds])
    columns = ["persona", "trajectory", "fingerprint", "steps", "questions", "answers", "engine", "judge", "seed"]
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    listed = f"<h3>Notes</h3><ul>{notes}</ul>" if notes else ""
    return _section("What was run", f"{table(columns, rows)}{listed}<p>Made by {escape(made_by)}.</p>")


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _first(evaluation: StoredEvaluation) -> Any:
    return (evaluation.rows or evaluation.measured)[0]
