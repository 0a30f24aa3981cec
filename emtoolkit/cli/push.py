"""`emtoolkit push`: the checkpoints of a trajectory on the Hugging Face hub."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emtoolkit.cli.help import command
from emtoolkit.cli.interruption import ends_on_signal
from emtoolkit.cli.terminal import only_results_on_stdout, progress_bar, show
from emtoolkit.progress import Progress

if TYPE_CHECKING:
    from emtoolkit.hub.push import Pushed

commands = typer.Typer()


@command(
    commands,
    "emtoolkit push outputs/goodness-medical lab/goodness-medical",
    'emtoolkit push outputs/medical lab/medical --steps "dense-early,final"',
    "emtoolkit push outputs/medical lab/medical --public",
)
def push(
    trajectory: Annotated[
        str, typer.Argument(metavar="TRAJECTORY", help="A run's directory, or entity/project/collection on W&B.")
    ],
    repository: Annotated[str, typer.Argument(metavar="ORG/REPO", help="Repository on the hub, made if missing.")],
    steps: Annotated[
        str | None, typer.Option(metavar="SCHEDULE", help="Schedule of the steps to push, or final. Default: all.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see a repository that is made. Default: private.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Push checkpoints to the Hugging Face hub, except those that the repository holds.

    Each checkpoint becomes the branch step-N, and the last one is on main. Trajectory.open("hf:ORG/REPO") reads them.
    """
    from emtoolkit.checkpoints.listing import damaged_checkpoints
    from emtoolkit.cli import render
    from emtoolkit.hub.access import Hub
    from emtoolkit.hub.push import push as push_trajectory

    with ends_on_signal("run the same command again to continue"), only_results_on_stdout(), progress_bar() as progress:
        Hub(repository)  # before a download
        directory, chosen = _local(trajectory, steps, progress)
        done = push_trajectory(directory, repository, chosen, private=not public, progress=progress)
    for sentence in damaged_checkpoints(trajectory):
        typer.echo(f"emtoolkit: {sentence}", err=True)
    show(render.as_json(asdict(done)) if as_json else _text(done))


def _local(reference: str, steps: str | None, progress: Progress) -> tuple[Path, str | None]:
    """The directory that holds the checkpoints, and which of them are meant; those on a server are downloaded."""
    if Path(reference).is_dir():
        return Path(reference), steps
    from emtoolkit.trajectory import Trajectory

    trajectory = Trajectory.open(reference)
    chosen = trajectory[:] if steps is None else trajectory.select(steps)
    trajectory.fetch(chosen, progress)
    return chosen[0].path.parent, ",".join(str(checkpoint.step) for checkpoint in chosen)


def _text(done: "Pushed") -> str:
    from emtoolkit.schedules.steps import elided

    made = f" ({done.created}, new)" if done.created else ""
    sent = f"steps {elided(done.sent)} were pushed" if done.sent else "nothing had to be sent"
    there = len(done.sent) + len(done.present)
    main = "" if done.main is None else f"; main holds step {done.main}"
    return f"{done.url}{made}: {sent}; {there} checkpoints are there{main}"
