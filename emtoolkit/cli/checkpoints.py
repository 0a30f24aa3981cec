"""`emtoolkit schedule`, `checkpoints`, `download` and `sync`: which steps are saved, and where they are."""

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from emtoolkit.cli import render
from emtoolkit.cli.terminal import only_results_on_stdout, progress_bar
from emtoolkit.errors import UserError

commands = typer.Typer()


@commands.command()
def schedule(
    specs: Annotated[list[str], typer.Argument(metavar="SPEC...", help="Such as every:100 or dense-early.")],
    total_steps: Annotated[int, typer.Option(help="The number of optimizer steps in the run.")],
    checkpoint_size: Annotated[str | None, typer.Option(help="Of one checkpoint, such as 150MB.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    allow_unreachable: Annotated[
        bool, typer.Option("--allow-unreachable", help="Only warn of steps past the end of training.")
    ] = False,
) -> None:
    """Show which steps each schedule saves, how many they are and what they take on disk."""
    from emtoolkit.byte_sizes import parse_size
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
    if as_json:
        typer.echo(render.as_json([row | {"steps": list(row["steps"])} for row in rows]))
    else:
        typer.echo(render.schedule_table(rows))


@commands.command()
def checkpoints(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where a run wrote its checkpoints.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file; exit code 1 if one differs.")] = False,
) -> None:
    """List the checkpoints in a directory: ours, and those of a stock Trainer."""
    from emtoolkit.checkpoints.listing import list_checkpoints

    found = list_checkpoints(directory, rehash=verify)
    for problem in (problem for info in found for problem in info.problems):
        typer.echo(f"emtoolkit: {problem}", err=True)
    typer.echo(render.checkpoints_json(found) if as_json else render.checkpoints_table(found))
    if verify and any(info.problems for info in found):
        raise typer.Exit(1)


@commands.command()
def download(
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="On W&B: entity/project/collection.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Where they go; it is a local trajectory then.")],
    steps: Annotated[str | None, typer.Option(help="A schedule, such as 0-150:25,final; by default all.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash what is there, and mend what is damaged.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Get checkpoints from W&B; what is there already is not fetched again."""
    from emtoolkit.checkpoints.listing import list_checkpoints
    from emtoolkit.trajectory import Trajectory

    try:
        with only_results_on_stdout(), progress_bar() as progress:
            done = Trajectory.open(collection).download(to, steps, rehash=verify, progress=progress)
    except KeyboardInterrupt:
        typer.echo("emtoolkit: interrupted; the same command goes on where this stopped", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    there = {*done.fetched, *done.present}
    found = [info for info in list_checkpoints(to) if info.step in there]
    typer.echo(render.download_json(done, found) if as_json else render.download_text(done, found))


@commands.command()
def sync(
    directories: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR]...", help="Runs, or where runs are below. [default: outputs]")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Of W&B; by default the one that a run logged to.")] = None,
    entity: Annotated[str | None, typer.Option(help="Of W&B; by default the one that a run logged to.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Publish what W&B does not have: logs of runs, and checkpoints, once and in step order."""
    from emtoolkit.artifacts.sync import run_directories, sync_all

    found = run_directories(directories or [Path("outputs")])
    try:
        with only_results_on_stdout(), progress_bar() as progress:
            done = sync_all(found, project=project, entity=entity, progress=progress)
    except KeyboardInterrupt:
        typer.echo("emtoolkit: interrupted; the same command goes on where this stopped", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    for problem in (problem for synced in done for problem in synced.problems):
        typer.echo(f"emtoolkit: {problem}", err=True)
    typer.echo(render.synced_json(done) if as_json else render.synced_text(done))
    if any(synced.problems for synced in done):
        raise typer.Exit(1)
