"""`emtoolkit sweep`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emtoolkit.cli.help import command
from emtoolkit.cli.output_formats import Json
from emtoolkit.cli.slurm_flags import Cancel, On, Parallel, Print, SlurmOptions, Status
from emtoolkit.cli.sweep_flags import (
    Agents,
    Count,
    DryRun,
    GpusPerRun,
    Only,
    ProcessesPerRun,
    Reuse,
    ShareGpus,
)
from emtoolkit.cli.terminal import progress_bar, show

if TYPE_CHECKING:
    from emtoolkit.sweeps.plan import SweepPlan
    from emtoolkit.sweeps.runner import SweepResult

commands = typer.Typer()


@command(
    commands,
    "emtoolkit sweep sweeps/schedules.yaml --dry-run",
    "emtoolkit sweep sweeps/seeds.yaml --jobs 8 --gpus-per-run 1",
    'emtoolkit sweep sweeps/seeds.yaml --on slurm --slurm "gres=gpu:1 time=4:00:00"',
)
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="W&B sweep file, such as sweeps/schedules.yaml.")],
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Runs at the same time.")] = 1,
    reuse: Reuse = True,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed combinations again.")] = False,
    count: Count = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of a random search.")] = 0,
    only: Only = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    gpus_per_run: GpusPerRun = None,
    share_gpus: ShareGpus = False,
    nproc_per_run: ProcessesPerRun = 1,
    on: On = None,
    slurm: SlurmOptions = "",
    parallel: Parallel = None,
    agents: Agents = None,
    print_script: Print = False,
    status: Status = False,
    cancel: Cancel = False,
) -> None:
    """Run every combination of a sweep file, without a server.

    The same command again continues an interrupted sweep.
    """
    from emtoolkit.cli import render_sweep, sweep_on_slurm
    from emtoolkit.sweeps.plan import plan_sweep

    request = sweep_on_slurm.SlurmRequest.of(
        on, slurm, parallel=parallel, agents=agents, print_script=print_script, status=status, cancel=cancel
    )
    if request is not None and agents is not None:
        sweep_on_slurm.run_agents(str(file), agents, request)
        return
    planned = plan_sweep(file, count=count, seed=seed, processes_per_run=nproc_per_run, reuse=reuse)
    if only is not None:
        planned = planned.only(only.split(","))
    if dry_run:
        show(render_sweep.sweep_plan_json(planned) if as_json else render_sweep.sweep_plan(planned))
        return
    if request is not None:
        processes = nproc_per_run if nproc_per_run > 1 else None
        chosen = {"count": count, "seed": seed or None, "gpus-per-run": gpus_per_run, "nproc-per-run": processes}
        further = sweep_on_slurm.further_options(chosen, retry_failed=retry_failed, reuse=reuse)
        sweep_on_slurm.run(planned, request, further=further, retry_failed=retry_failed, as_json=as_json)
        return
    result = _run(planned, jobs, gpus_per_run, waits=only is None, retry_failed=retry_failed, share_gpus=share_gpus)
    show(render_sweep.sweep_json(result) if as_json else render_sweep.sweep_table(result))
    _end(result, leaves_rest=only is not None)


def _end(result: "SweepResult", *, leaves_rest: bool) -> None:
    if result.signal_number is not None and result.is_interrupted:
        typer.echo("emtoolkit: interrupted; run the same command again to continue", err=True)
        raise typer.Exit(128 + result.signal_number)
    if leaves_rest and result.left_to_others:
        typer.echo("emtoolkit: another process runs what is left, and continues", err=True)
    elif not result.all_finished:
        raise typer.Exit(1)


def _run(
    planned: "SweepPlan", jobs: int, gpus_per_run: int | None, *, waits: bool, retry_failed: bool, share_gpus: bool
) -> "SweepResult":
    from emtoolkit.sweeps.gpus import gpu_share, visible_gpus
    from emtoolkit.sweeps.runner import run_sweep

    # A single program that is no training of ours may well use all GPUs.
    divided = jobs > 1 or gpus_per_run is not None or all(run.config is not None for run in planned.runs)
    gpus = (
        gpu_share(
            visible_gpus(planned.environment),
            per_run=gpus_per_run,
            shared=share_gpus,
            processes_per_run=planned.processes_per_run,
        )
        if divided
        else None
    )
    with progress_bar() as progress:
        return run_sweep(planned, jobs=jobs, retry_failed=retry_failed, progress=progress, gpus=gpus, waits=waits)
