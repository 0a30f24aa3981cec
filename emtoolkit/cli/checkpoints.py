"""`emtoolkit schedule`, `download` and `sync`: the steps to save, and the checkpoints of a run."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emtoolkit.cli.help import command
from emtoolkit.cli.interruption import ends_on_signal
from emtoolkit.cli.output_formats import Csv, Json, check_one_format, rows_csv
from emtoolkit.cli.terminal import only_results_on_stdout, progress_bar, show
from emtoolkit.errors import UserError

if TYPE_CHECKING:
    from emtoolkit.artifacts.sync import Synced
    from emtoolkit.evaluation.wandb_sync import SyncedEvaluation

commands = typer.Typer()

_STEPS_HELP = "Schedule of the steps to download, or final. Default: all."
_CONTINUES = "run the same command again to continue"
_OF_WANDB = "Default: the one that the run logged to."


@command(
    commands,
    "emtoolkit schedule every:100 every:25 dense-early --total-steps 397",
    "emtoolkit schedule 0-150:25,300 --total-steps 397 --checkpoint-size 150MB",
    "emtoolkit schedule pythia --total-steps 143000 --json",
)
def schedule(
    specs: Annotated[list[str], typer.Argument(metavar="SPEC...", help="Schedules, such as every:100 or dense-early.")],
    total_steps: Annotated[int, typer.Option(metavar="N", help="Number of optimizer steps in the run.")],
    checkpoint_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Size of one checkpoint, such as 150MB.")
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
    allow_unreachable: Annotated[
        bool, typer.Option("--allow-unreachable", help="Warn about steps after the end of training, and go on.")
    ] = False,
) -> None:
    """Compare schedules: the steps that each one saves, their number and their size on disk."""
    check_one_format(as_json=as_json, as_csv=as_csv)
    from emtoolkit.byte_sizes import parse_size
    from emtoolkit.cli import render
    from emtoolkit.schedules.schedule import Schedule

    try:
        size = None if checkpoint_size is None else parse_size(checkpoint_size)
    except UserError as error:
        raise UserError(f"--checkpoint-size: {error}") from None
    rows: list[dict[str, Any]] = []
    warnings: list[str] = []
    for spec in specs:
        parsed = Schedule.parse(spec)
        steps = parsed.steps(total_steps)
        if warning := parsed.check_reachable(total_steps, allow_unreachable=allow_unreachable):
            warnings.append(warning)
        count = len(steps)
        disk = None if size is None else count * size
        rows.append({"spec": spec, "steps": steps, "count": count, "bytes": disk, "largest_gap": steps.largest_gap()})
    for warning in warnings:
        typer.echo(f"emtoolkit: warning: {warning}", err=True)
    if as_csv:
        show(rows_csv([row | {"steps": list(row["steps"])} for row in rows]))
    elif as_json:
        show(render.as_json([row | {"steps": list(row["steps"])} for row in rows]))
    else:
        show(render.schedule_table(rows))


@command(
    commands,
    "emtoolkit download lab/em/baseline-medical-qwen-s0-1a2b3c4d --to runs/medical",
    "emtoolkit download lab/em/COLLECTION --to runs/medical --steps 0-150:25,final",
    "emtoolkit download hf:lab/medical --to runs/medical --verify",
)
def download(
    collection: Annotated[
        str, typer.Argument(metavar="COLLECTION", help="Collection on W&B, entity/project/collection, or hf:ORG/REPO.")
    ],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Directory to download into.")],
    steps: Annotated[str | None, typer.Option(metavar="SCHEDULE", help=_STEPS_HELP)] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash the files in DIR, and download damaged ones again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Download checkpoints from W&B or the Hugging Face hub, except those that the directory already holds."""
    from emtoolkit.checkpoints.listing import list_checkpoints
    from emtoolkit.cli import render
    from emtoolkit.trajectory import Trajectory

    with ends_on_signal(_CONTINUES), only_results_on_stdout(), progress_bar() as progress:
        done = Trajectory.open(collection).download(to, steps, rehash=verify, progress=progress)
    there = {*done.fetched, *done.present}
    found = [info for info in list_checkpoints(to) if info.step in there]
    show(render.download_json(done, found) if as_json else render.download_text(done, found))


@command(
    commands,
    "emtoolkit sync",
    "emtoolkit sync outputs --entity lab --project em",
    "emtoolkit sync --watch outputs/baseline-medical",
)
def sync(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]...", help="Runs, or directories of runs. Default: outputs."),
    ] = None,
    project: Annotated[str | None, typer.Option(metavar="NAME", help=f"W&B project. {_OF_WANDB}")] = None,
    entity: Annotated[str | None, typer.Option(metavar="NAME", help=f"W&B entity. {_OF_WANDB}")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Publish the checkpoints of running trainings until they have ended.")
    ] = False,
    every: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Pause of --watch between two looks. Default: 10.")
    ] = None,
    patience: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="How long --watch waits for a training that stopped. Default: 600."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Publish the run logs, checkpoints and evaluations that W&B lacks, in step order.

    With --watch the trainings may be running, on this machine or on another one that shares the directories.
    """
    from emtoolkit.artifacts.run_directories import run_directories
    from emtoolkit.artifacts.sync import sync_all
    from emtoolkit.artifacts.watch import WatchOptions, watch_all
    from emtoolkit.evaluation.wandb_record import directories_with_runs

    options = WatchOptions.of(project, entity, every=every, patience=patience)
    if not watch and (every is not None or patience is not None):
        raise UserError(f"--{'patience' if every is None else 'every'}: belongs to --watch; add --watch")
    roots = directories or [Path("outputs")]
    evaluated = directories_with_runs(roots)
    optional = [root for root in roots if any(path.is_relative_to(root) for path in evaluated)]
    found = run_directories(roots, optional)
    evaluations: list[SyncedEvaluation] = []
    say = partial(print, file=sys.stderr if as_json else sys.stdout, flush=True)
    with ends_on_signal(_CONTINUES), only_results_on_stdout(), progress_bar() as progress:
        if watch:
            done = watch_all(lambda: run_directories(roots, optional), options, say)
        else:
            done = sync_all(found, project=project, entity=entity, progress=progress)
        if evaluated:
            from emtoolkit.evaluation.wandb_sync import sync_evaluations

            # The checkpoints have their versions now.
            evaluations = sync_evaluations(evaluated, project=project, entity=entity, progress=progress)
    _show_synced(done, evaluations, as_json=as_json)


def _show_synced(done: "Sequence[Synced]", evaluations: "Sequence[SyncedEvaluation]", *, as_json: bool) -> None:
    from emtoolkit.cli import render

    problems = [problem for synced in done for problem in synced.problems]
    problems += [problem for synced in evaluations for problem in synced.problems]
    for problem in problems:
        typer.echo(f"emtoolkit: {problem}", err=True)
    show(render.synced_json(done, evaluations) if as_json else render.synced_text(done, evaluations))
    if problems:
        raise typer.Exit(1)
