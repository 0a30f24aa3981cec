"""The report as a W&B Report: the curves of the runs of the evaluations, and the tables of the HTML page.

The panels show what the runs of 'emtoolkit evaluate' logged, so an evaluation that W&B lacks is only in the tables.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emtoolkit.analysis.compare import Comparison, View, verdict
from emtoolkit.analysis.onset_text import event_text, onset_sentence
from emtoolkit.analysis.report import Report
from emtoolkit.artifacts.server import why_not_logged_in, why_unreachable
from emtoolkit.byte_sizes import format_size
from emtoolkit.errors import CheckpointError, ConfigError, first_line
from emtoolkit.evaluation.curve import AXIS
from emtoolkit.evaluation.metrics import DEFINITIONS
from emtoolkit.evaluation.result_files import StoredEvaluation
from emtoolkit.evaluation.wandb_record import EvaluationRun, read_runs
from emtoolkit.shell_command import quoted_command

_ANSWERS = "answers_table"


@dataclass(frozen=True, slots=True)
class ReportOnWandb:
    """A report that W&B has, and sentences on what it lacks."""

    url: str
    notes: tuple[str, ...]


def save_on_wandb(report: Report, made_by: str) -> ReportOnWandb:
    """Save `report` on W&B, in the project of the first evaluation that W&B has.

    Raises:
        ConfigError: wandb-workspaces is not installed.
        CheckpointError: W&B cannot be reached, refuses the report, or has none of the evaluations.
    """
    _workspaces()
    if why := why_not_logged_in() or why_unreachable():
        raise CheckpointError(f"--wandb: a W&B Report needs W&B's server, which cannot be used ({why})")
    runs, notes = _runs_of(report.evaluations)
    built = build(report, runs, made_by)
    try:
        built.save()
    except Exception as error:  # the client documents no set of exceptions
        raise CheckpointError(f"--wandb: W&B did not take the report ({first_line(error)})") from error
    return ReportOnWandb(str(built.url), tuple(notes))


def _workspaces() -> Any:
    """The module of W&B's Reports, which exports its names in a way that type checkers do not see.

    Raises:
        ConfigError: wandb-workspaces is not installed.
    """
    try:
        from wandb_workspaces.reports import v2
    except ImportError as error:
        raise ConfigError(
            "--wandb: a W&B Report needs wandb-workspaces; run pip install 'emtoolkit[report]', or leave out --wandb"
        ) from error
    return v2


def _runs_of(evaluations: Sequence[StoredEvaluation]) -> tuple[list[EvaluationRun], list[str]]:
    """The runs on W&B of all evaluations, and a sentence for each evaluation without one."""
    found, notes = list[EvaluationRun](), list[str]()
    for each in evaluations:
        sent = [run for run in read_runs(each.directory) if run.sent]
        found += sent
        if not sent:
            notes.append(
                f"{each.directory}: W&B does not have this evaluation, so the W&B Report lacks its curve; "
                f"{quoted_command('emtoolkit', 'sync', each.directory)} sends it after 'emtoolkit evaluate --wandb "
                "offline'"
            )
    if not found:
        raise CheckpointError(
            f"--wandb: W&B has none of the {len(evaluations)} evaluations; run 'emtoolkit sync', or 'emtoolkit "
            "evaluate' with --wandb online"
        )
    return found, notes


def build(report: Report, runs: Sequence[EvaluationRun], made_by: str) -> Any:
    """The `wandb_workspaces.reports.v2.Report`, not saved; `runs` are those on W&B."""
    wr = _workspaces()

    runsets = _runsets(runs)
    blocks: list[Any] = [wr.P(f"The event: {event_text(report.event)}."), wr.TableOfContents(), wr.H2("Onset")]
    blocks.append(wr.MarkdownBlock(_table(_onsets(report))))
    for title, metrics in _panels(report).items():
        lines = [_line(title_of_panel, names) for title_of_panel, names in metrics.items()]
        if lines:
            blocks += [wr.H2(title), wr.PanelGrid(runsets=runsets, panels=lines)]
    if report.comparisons:
        rows = [_schedule(view, each) for each in report.comparisons for view in (each.reference, *each.views)]
        blocks += [wr.H2("What each schedule would have seen"), wr.MarkdownBlock(_table(rows))]
    if any(each.rows for each in report.evaluations):
        answers = wr.WeavePanelSummaryTable(table_name=_ANSWERS)
        blocks += [wr.H2("Answers"), wr.PanelGrid(runsets=runsets, panels=[answers])]
    blocks += [wr.H2("What was run"), wr.MarkdownBlock(_table(_what_was_run(report.evaluations)))]
    if report.notes:
        blocks.append(wr.UnorderedList([_escaped(note) for note in report.notes]))
    blocks.append(wr.P(f"Made by {made_by}."))
    first = runs[0]
    # A question mark would end the path of the report's address.
    title = f"When it appeared: {event_text(report.event)}"
    return wr.Report(project=first.project, entity=first.entity, title=title[:128], blocks=blocks, width="fluid")


def _runsets(runs: Sequence[EvaluationRun]) -> list[Any]:
    """One set of runs for each project, which holds these runs alone."""
    wr = _workspaces()

    projects: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        projects.setdefault((run.entity, run.project), []).append(run.id)
    return [
        wr.Runset(entity=entity, project=project, name=f"evaluations in {project}", filters=f"Metric('ID') in {ids}")
        for (entity, project), ids in projects.items()
    ]


def _panels(report: Report) -> dict[str, dict[str, list[str]]]:
    """The names on W&B of the curves in each panel, by the title of the section and of the panel."""
    metric, kind = report.event.metric, report.event.kind
    measures = dict.fromkeys(
        f"measure/{row.measure.rpartition('@')[0]}/{row.metric}" for each in report.evaluations for row in each.measured
    )
    curves: dict[str, list[str]] = {}
    if metric in DEFINITIONS:
        event = {"rise": f"rise/{metric}", "level": f"em_rate/{metric}"}[kind]
        curves = {event: [event], "EM rates": [f"em_rate/{name}" for name in DEFINITIONS]}
    answered = any(each.rows for each in report.evaluations)
    coherence = {"coherence and truncation": ["coherence", "truncation"]} if answered else {}
    companions = ({"changed answers": ["changed_answers"]} if answered else {}) | {name: [name] for name in measures}
    return {"Curves": curves, "Coherence": coherence, "Continuous companions": companions}


def _line(title: str, names: Sequence[str]) -> Any:
    wr = _workspaces()

    return wr.LinePlot(title=title, x=AXIS, y=list(names), title_x="step", smoothing_factor=0)


def _onsets(report: Report) -> list[dict[str, Any]]:
    return [
        {
            "persona": seed.persona,
            "trajectory": seed.trajectory,
            "new questions": onset_sentence(seed.new_questions, report.event),
            "these questions": onset_sentence(seed.these_questions, report.event),
        }
        for result in report.results
        for seed in result.seeds
    ]


def _schedule(view: View, of: Comparison) -> dict[str, Any]:
    row = {
        "persona": of.persona,
        "trajectory": of.trajectory,
        "schedule": view.schedule,
        "checkpoints": len(view.steps),
        "disk": None if view.bytes is None else format_size(view.bytes),
        "RMSE": view.rmse,
    }
    for name, reference, onset in (
        ("new questions", of.reference.new_questions, view.new_questions),
        ("these questions", of.reference.these_questions, view.these_questions),
    ):
        found = verdict(reference, onset)
        is_bracket = onset is not None and onset.bracket.width is not None
        row[f"onset, {name}"] = f"{found} {onset.bracket}" if onset is not None and is_bracket else found
    return row


def _what_was_run(evaluations: Sequence[StoredEvaluation]) -> list[dict[str, Any]]:
    return [
        {
            "persona": each.all_rows[0].persona,
            "trajectory": each.all_rows[0].trajectory,
            "fingerprint": each.all_rows[0].fingerprint[:8],
            "steps": len(each.steps),
            "answers": len(each.rows),
            "engine": each.settings.get("engine"),
            "judge": each.settings.get("judge"),
        }
        for each in evaluations
    ]


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """`rows` as a table in Markdown."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row[name]) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else _escaped(str(value))


def _escaped(text: str) -> str:
    """`text` as Markdown shows it, whoever wrote it: no HTML, no links, and no further cell of a table."""
    for character in "\\`*_[]<>|#!":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
