"""`emtoolkit compare` and `emtoolkit suggest`: what other schedules would have seen, and which would see most."""

from pathlib import Path
from typing import Annotated

import typer

from emtoolkit.cli.analysis_options import (
    AnalysisFile,
    Falls,
    Level,
    Metric,
    Threshold,
    chosen_event,
    decided_analysis,
)
from emtoolkit.cli.help import command
from emtoolkit.cli.layout import here
from emtoolkit.cli.output_formats import Csv, Json, check_one_format, rows_csv
from emtoolkit.cli.terminal import only_results_on_stdout, show
from emtoolkit.shell_command import shell_command

commands = typer.Typer()

_Evaluations = Annotated[
    list[str],
    typer.Argument(metavar="EVALUATION...", help="Evaluations, runs, or directories of runs."),
]
_Schedules = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SPEC,SPEC...", help="Schedules; steps belong to the rule after them, and ; separates, too. May repeat."
    ),
]
_Reference = Annotated[str, typer.Option(metavar="SCHEDULE|all", help="Evaluated steps that count as the truth.")]
_Figure = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw curves, brackets and costs: .png, .pdf or .svg.")
]
_Wandb = Annotated[
    str | None, typer.Option(metavar="online|offline", help="W&B run with the table and plots. Default: none.")
]


@command(
    commands,
    "emtoolkit compare outputs/goodness-medical --schedules every:100,dense-early",
    "emtoolkit compare outputs/s0 outputs/s1 --schedules 'every:100;0,every:100'",
    "emtoolkit compare outputs --schedules dense-early --threshold 0.05",
)
def compare(
    evaluations: _Evaluations,
    schedules: _Schedules = None,
    reference: _Reference = "all",
    threshold: Threshold = None,
    metric: Metric = None,
    level: Level = False,
    falls: Falls = False,
    analysis: AnalysisFile = None,
    figure: _Figure = None,
    wandb: _Wandb = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Show what each schedule would have seen in densely saved and evaluated trajectories."""
    check_one_format(as_json=as_json, as_csv=as_csv)
    with only_results_on_stdout():
        # Imported here, where messages of libraries for developers are not shown.
        from emtoolkit.analysis.compare import compare_all, split_schedules
        from emtoolkit.analysis.compare_figure import save_compare_figure
        from emtoolkit.analysis.compare_wandb import chosen_mode, log_comparison
        from emtoolkit.analysis.decided_before import standings
        from emtoolkit.analysis.schedule_costs import persona_summaries, schedule_costs
        from emtoolkit.analysis.sources import read_sources
        from emtoolkit.cli import render_compare
        from emtoolkit.sweeps.attempts import unfinished_runs

        mode = None if wandb is None else chosen_mode(wandb)
        decided = decided_analysis(analysis)
        specs = [spec for text in schedules or () for spec in split_schedules(text)]
        if not specs and decided is not None:
            specs = list(decided.schedules)
        event = chosen_event(decided, metric, threshold, level=level, falls=falls)
        unfinished = [note for place in evaluations if (note := unfinished_runs(Path(place)))]
        sources = read_sources(evaluations)
        found = compare_all(sources, specs, event, reference)
        standing = standings(sources.directories, event, decided, specs)
        if figure is not None:
            save_compare_figure(found, schedule_costs(found), figure)
        run = None if mode is None else log_comparison(found, mode)
    for note in (*unfinished, *found.notes):
        typer.echo(f"emtoolkit: {note}", err=True)
    if as_csv:
        show(rows_csv(found.rows()))
    elif as_json:
        show(render_compare.compare_json(found, standing))
    else:
        show(render_compare.compare_text(found, persona_summaries(found), standing))
    if run is not None:
        send = shell_command("wandb", "sync", Path(here(run.log)))
        where = f"W&B run: {run.path}" if run.sent else f"Publish on W&B: {send}"
        typer.echo(where, err=as_json or as_csv)


@command(
    commands,
    "emtoolkit suggest outputs/seed-0 outputs/seed-1 outputs/seed-2 --budget 10",
    "emtoolkit suggest outputs/goodness-medical --budget 10 --in-sample",
    "emtoolkit suggest outputs --budget 8 --metric changed",
)
def suggest(
    evaluations: _Evaluations,
    budget: Annotated[int, typer.Option(min=2, metavar="N", help="Checkpoints at most, the last one included.")],
    reference: _Reference = "all",
    metric: Annotated[str, typer.Option(metavar="NAME", help="Metric, as for 'emtoolkit compare'.")] = "betley",
    level: Level = False,
    in_sample: Annotated[bool, typer.Option("--in-sample", help="Accept a schedule that fits one curve.")] = False,
    as_json: Json = False,
) -> None:
    """Suggest the schedule of a number of checkpoints that follows such curves best."""
    with only_results_on_stdout():
        from emtoolkit.analysis.sources import read_sources
        from emtoolkit.analysis.suggest import suggest_for
        from emtoolkit.cli import render_compare

        sources = read_sources(evaluations)
        found = suggest_for(
            sources, metric, "level" if level else "rise", budget, reference=reference, in_sample=in_sample
        )
    for note in sources.notes:
        typer.echo(f"emtoolkit: {note}", err=True)
    show(render_compare.suggestion_json(found) if as_json else render_compare.suggestion_text(found))
