"""`emtoolkit sweep`."""

from pathlib import Path
from typing import Annotated

import typer

from emtoolkit.cli.help import command
from emtoolkit.cli.terminal import progress_bar, show

commands = typer.Typer()


@command(
    commands,
    "emtoolkit sweep sweeps/schedules.yaml --dry-run",
    "emtoolkit sweep sweeps/seeds.yaml --jobs 8 --gpus-per-run 1",
    "emtoolkit sweep sweeps/seeds.yaml --retry-failed",
)
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="W&B sweep file, such as sweeps/schedules.yaml.")],
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Runs at the same time.")] = 1,
    gpus_per_run: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="GPUs of each run, by default as many as its processes.")
    ] = None,
    share_gpus: Annotated[
        bool, typer.Option("--share-gpus", help="Let runs use one GPU at the same time; otherwise a run waits.")
    ] = False,
    nproc_per_run: Annotated[
        int, typer.Option(min=1, metavar="N", help="Processes of each run, started by torchrun if more than 1.")
    ] = 1,
    reuse: Annotated[
        bool, typer.Option("--reuse/--no-reuse", help="Let runs of one trajectory share one training.")
    ] = True,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed combinations again.")] = False,
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Largest number of runs; required for a random search.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of a random search.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the combinations and their commands; run nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run every combination of a sweep file, without a server.

    The same command again continues an interrupted sweep.
    """
    from emtoolkit.cli import render_sweep
    from emtoolkit.sweeps.gpus import gpu_share, visible_gpus
    from emtoolkit.sweeps.plan import plan_sweep
    from emtoolkit.sweeps.runner import run_sweep

    planned = plan_sweep(file, count=count, seed=seed, processes_per_run=nproc_per_run, reuse=reuse)
    if dry_run:
        show(render_sweep.sweep_plan_json(planned) if as_json else render_sweep.sweep_plan(planned))
        return
    # A single program that is no training of ours may well use all GPUs.
    divided = jobs > 1 or gpus_per_run is not None or all(run.config is not None for run in planned.runs)
    gpus = (
        gpu_share(
            visible_gpus(planned.environment),
            per_run=gpus_per_run,
            shared=share_gpus,
            processes_per_run=nproc_per_run,
        )
        if divided
        else None
    )
    with progress_bar() as progress:
        result = run_sweep(planned, jobs=jobs, retry_failed=retry_failed, progress=progress, gpus=gpus)
    show(render_sweep.sweep_json(result) if as_json else render_sweep.sweep_table(result))
    if result.signal_number is not None:
        typer.echo("emtoolkit: interrupted; run the same command again to continue", err=True)
        raise typer.Exit(128 + result.signal_number)
    if not result.all_finished:
        raise typer.Exit(1)
