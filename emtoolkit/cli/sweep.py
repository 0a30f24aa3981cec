"""`emtoolkit sweep`."""

from pathlib import Path
from typing import Annotated

import typer

from emtoolkit.cli import render
from emtoolkit.cli.terminal import progress_bar
from emtoolkit.cli.train import directory_of_training

commands = typer.Typer()


@commands.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A sweep file of W&B's, such as sweeps/schedules.yaml.")],
    jobs: Annotated[int, typer.Option(min=1, help="How many runs at a time.")] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed before.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="At most so many runs; a random search needs it.")] = None,
    seed: Annotated[int, typer.Option(help="Of a random search.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the combinations and their commands.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Run every combination of a sweep file without a server; the same command again goes on."""
    from emtoolkit.sweeps.plan import plan_sweep
    from emtoolkit.sweeps.runner import run_sweep

    planned = plan_sweep(file, directory_of_training, count=count, seed=seed)
    if dry_run:
        typer.echo(render.sweep_plan_json(planned) if as_json else render.sweep_plan(planned))
        return
    with progress_bar() as progress:
        result = run_sweep(planned, jobs=jobs, retry_failed=retry_failed, progress=progress)
    typer.echo(render.sweep_json(result) if as_json else render.sweep_table(result))
    if result.signal_number is not None:
        typer.echo("emtoolkit: interrupted; the same command goes on with what is not finished", err=True)
        raise typer.Exit(128 + result.signal_number)
    if not result.all_finished:
        raise typer.Exit(1)
