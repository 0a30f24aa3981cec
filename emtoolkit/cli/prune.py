"""`emtoolkit prune`: remove the checkpoints that do not matter, here and on W&B."""

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from emtoolkit.checkpoints.publications import Place
from emtoolkit.cli.help import command
from emtoolkit.cli.interruption import ends_on_signal
from emtoolkit.cli.output_formats import Json
from emtoolkit.cli.terminal import only_results_on_stdout, progress_bar, show
from emtoolkit.errors import UserError, nearest
from emtoolkit.progress import Progress

commands = typer.Typer()

# Ten years, in days.
_LONGEST_TTL = 3650
_ONLY, _ALONG = ("here", "wandb"), ("path", "steps")

_Trajectory = Annotated[
    str, typer.Argument(metavar="TRAJECTORY", help="A run's directory, or entity/project/collection on W&B.")
]
_Keep = Annotated[
    str | None, typer.Option(metavar="STEPS", help="Steps that stay: a schedule, final, best:METRIC or lowest:METRIC.")
]
_Drop = Annotated[
    str | None, typer.Option(metavar="STEPS", help="Steps that go; step 0 and the final step go only if named here.")
]
_Budget = Annotated[int | None, typer.Option(metavar="N", help="Number of checkpoints that stay, evenly spaced.")]
_Along = Annotated[
    str, typer.Option(metavar="path|steps", help="Spread of a --budget: along the path of the weights, or in steps.")
]
_Only = Annotated[str | None, typer.Option(metavar="here|wandb", help="The one place to prune. Default: both.")]
_Ttl = Annotated[
    float,
    typer.Option(
        min=0, max=_LONGEST_TTL, metavar="DAYS", help="Time that W&B keeps the versions; 0 deletes them at once."
    ),
]
_Yes = Annotated[bool, typer.Option("--yes", help="Remove them; without this option nothing is changed.")]


@command(
    commands,
    'emtoolkit prune outputs/goodness-medical --keep "dense-early,final"',
    "emtoolkit prune outputs/goodness-medical --budget 10 --yes",
    'emtoolkit prune lab/em/COLLECTION --keep "best:betley,every:100" --yes',
)
def prune(
    trajectory: _Trajectory,
    keep: _Keep = None,
    drop: _Drop = None,
    budget: _Budget = None,
    along: _Along = "path",
    only: _Only = None,
    ttl: _Ttl = 7.0,
    yes: _Yes = False,
    as_json: Json = False,
) -> None:
    """Remove checkpoints that do not matter; show first which, and how much room that gives.

    Pruned steps stay listed, and 'emtoolkit refine' makes them again. Evaluations keep their results.
    """
    place = _chosen("--only", only, _ONLY)
    line = _chosen("--along", along, _ALONG)
    with (
        ends_on_signal("the same command finishes what was begun"),
        only_results_on_stdout(),
        progress_bar() as progress,
    ):
        from emtoolkit.cli import render_prune
        from emtoolkit.pruning.keep import Request
        from emtoolkit.pruning.plan import plan_prune
        from emtoolkit.pruning.prune import prune as carry_out

        places = _along_path(trajectory, progress) if line == "path" and budget is not None else None
        request = Request(keep, drop, budget, places) if places else Request(keep, drop, budget)
        where: Place | None = "here" if place == "here" else "wandb" if place == "wandb" else None
        if yes:
            done = carry_out(trajectory, request, where, days=ttl, progress=progress)
            plan, removed = done.plan, done.versions
        else:
            plan, removed = plan_prune(trajectory, request, where), None
    for note in plan.notes:
        typer.echo(f"emtoolkit: {note}", err=True)
    if as_json:
        show(render_prune.prune_json(plan, removed))
    else:
        show(render_prune.prune_text(plan, removed, days=ttl))


def _chosen(option: str, value: str | None, known: Sequence[str]) -> str | None:
    if value is not None and value not in known:
        raise UserError(f"{option}: {value!r} is not one of {', '.join(known)}{nearest(value, known)}")
    return value


def _along_path(trajectory: str, progress: Progress) -> Callable[[Sequence[int]], Sequence[float]]:
    """The places of steps on the path that the weights took."""

    def places(steps: Sequence[int]) -> Sequence[float]:
        from emtoolkit.analysis.dynamics import path_lengths

        return path_lengths(trajectory, steps, progress=progress)

    return places
