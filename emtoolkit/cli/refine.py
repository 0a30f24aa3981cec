"""`emtoolkit refine`: missing steps of a finished trajectory, made again and proved."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emtoolkit.cli.help import command
from emtoolkit.cli.interruption import ends_on_signal
from emtoolkit.cli.output_formats import Json
from emtoolkit.cli.terminal import only_results_on_stdout, progress_bar, show, training_bar
from emtoolkit.errors import UserError
from emtoolkit.launch import is_local_main_process, process_count

if TYPE_CHECKING:
    from emtoolkit.training.refinement import Refinement

commands = typer.Typer()

_CONTINUES = "the trajectory is as it was, and the same command continues"

_Trajectory = Annotated[
    str,
    typer.Argument(metavar="TRAJECTORY", help="A finished run's directory, a collection on W&B, or hf:ORG/REPO."),
]
_To = Annotated[Path | None, typer.Option(metavar="DIR", help="Local directory for a trajectory on W&B or the hub.")]
_Steps = Annotated[
    str, typer.Option(metavar="SCHEDULE", help="Steps to make, such as 50-100:5; those that exist are skipped.")
]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="Config of the training. Default: DIR/config.yaml.")]
Base = Annotated[str | None, typer.Option(metavar="PATH", help="Present place of the base model.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask; in a pipe nothing is asked.")]


@command(
    commands,
    'emtoolkit refine outputs/goodness-medical --steps "50-100:5"',
    "emtoolkit refine outputs/goodness-medical --steps 55,60 --dry-run",
    "emtoolkit refine outputs/goodness-medical --steps every:10 --yes --json",
)
def refine(
    trajectory: _Trajectory,
    steps: _Steps,
    to: _To = None,
    config: Config = None,
    base: Base = None,
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the price, and train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Train missing steps of a finished run again, and add them if every existing step comes out with its bytes.

    Training starts at the nearest earlier resume state (checkpointing.resume_keep keeps them), or at step 0.
    """
    with ends_on_signal(_CONTINUES), only_results_on_stdout():
        from emtoolkit.artifacts.client_process import end_client
        from emtoolkit.cli import render_refine
        from emtoolkit.saving.signals import TrainingInterrupted
        from emtoolkit.training.refine import clear_left_overs
        from emtoolkit.training.refine import refine as run_refinement
        from emtoolkit.training.refinement import plan_refinement

        directory = _local(trajectory, to, config)
        plan = plan_refinement(directory, steps, config=config, base=base, bar=progress_bar)
        announce(plan, price=not dry_run)
        if dry_run or not plan.missing:
            if not dry_run and is_local_main_process():
                clear_left_overs(plan)
            text = render_refine.plan_json(plan) if as_json else render_refine.plan_text(plan)
        else:
            ask(plan, yes=yes)
            try:
                done = run_refinement(plan, bar=progress_bar, step_bar=training_bar())
            except TrainingInterrupted as interruption:
                end_client()
                if is_local_main_process():
                    typer.echo(f"emtoolkit: {interruption}; {_CONTINUES}", err=True)
                raise typer.Exit(128 + interruption.signal_number) from None
            text = render_refine.refined_json(done) if as_json else render_refine.refined_text(done)
    if is_local_main_process():
        show(text)


def _local(trajectory: str, to: Path | None, config: Path | None) -> Path:
    """The directory of the trajectory, which is downloaded if it is on W&B.

    Raises:
        UserError: it is nowhere, or `to` does not fit.
    """
    if Path(trajectory).is_dir():
        if to is not None:
            raise UserError(f"--to: {trajectory} is a directory, and its steps are added there; remove the option")
        return Path(trajectory)
    from emtoolkit.artifacts.collection import Reference
    from emtoolkit.hub.names import is_hub
    from emtoolkit.training.from_wandb import downloaded_trajectory

    where = "on the Hugging Face hub" if is_hub(trajectory) else "on W&B"
    if not is_hub(trajectory):
        Reference.parse(trajectory)
    if to is None:
        if is_hub(trajectory):
            raise UserError(f"{trajectory}: is {where}; pass --to DIR with a local directory for its checkpoints")
        raise UserError(
            f"{trajectory}: there is no such directory; for a collection on W&B, pass --to DIR with a local directory"
        )
    if process_count() > 1:
        raise UserError(f"{trajectory}: is {where}; download it in one process first ('emtoolkit download')")
    return downloaded_trajectory(trajectory, to, config=config is None, bar=progress_bar)


def announce(plan: "Refinement", *, price: bool = True) -> None:
    """Print the `price` on standard error, and what differs from the environment that trained the steps."""
    from emtoolkit.cli import render_refine
    from emtoolkit.training.refine import note_on_environment

    if not is_local_main_process() or not plan.missing:
        return
    if price:
        typer.echo(f"emtoolkit: {render_refine.price(plan)}", err=True)
    if (note := note_on_environment(plan)) is not None:
        typer.echo(f"emtoolkit: {note}", err=True)


def ask(plan: "Refinement", *, yes: bool) -> None:
    """Ask whether to train, where a person can answer.

    Raises:
        typer.Exit: the answer is no.
    """
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()) or not is_local_main_process():
        return
    if not typer.confirm(f"Train {plan.steps_to_train} steps?", err=True):
        raise typer.Exit(1)
