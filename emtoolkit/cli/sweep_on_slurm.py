"""`emtoolkit sweep FILE --on slurm`: submit, print, show or cancel."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import typer

from emtoolkit.cli.layout import here
from emtoolkit.cli.terminal import show
from emtoolkit.errors import UserError, nearest, shown

if TYPE_CHECKING:
    from emtoolkit.sweeps.plan import SweepPlan

_ENGINES = ("slurm",)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks of Slurm."""

    action: Literal["submit", "print", "status", "cancel"]
    options: Mapping[str, str | bool] = field(default_factory=dict)
    parallel: int | None = None

    @classmethod
    def of(
        cls,
        on: str | None,
        options: str,
        *,
        parallel: int | None,
        print_script: bool,
        status: bool,
        cancel: bool,
    ) -> "Asked | None":
        """What the flags ask for; None without `--on`.

        Raises:
            UserError: another engine, flags of Slurm without `--on slurm`, or two of `--print`, `--status`, `--cancel`.
        """
        from emtoolkit.sweeps.slurm_script import slurm_options

        actions = [name for name, given in (("print", print_script), ("status", status), ("cancel", cancel)) if given]
        others = [*(["slurm"] if options else []), *(["parallel"] if parallel is not None else []), *actions]
        if on is None:
            if others:
                raise UserError(f"--{others[0]}: needs --on slurm")
            return None
        if on not in _ENGINES:
            raise UserError(f"--on: {shown(on)} is not an engine; expected slurm{nearest(on, _ENGINES)}")
        if len(actions) > 1:
            raise UserError(f"--{actions[0]} and --{actions[1]}: give only one")
        action: Literal["submit", "print", "status", "cancel"]
        action = "print" if print_script else "status" if status else "cancel" if cancel else "submit"
        return cls(action, slurm_options(options, "--slurm"), parallel)


def further_options(
    *,
    count: int | None,
    seed: int,
    gpus_per_run: int | None,
    nproc_per_run: int,
    retry_failed: bool,
    reuse: bool,
) -> list[str]:
    """The options that a task needs to find its combination and to run it alike."""
    given = {
        "--count": count,
        "--seed": seed or None,
        "--gpus-per-run": gpus_per_run,
        "--nproc-per-run": nproc_per_run if nproc_per_run > 1 else None,
    }
    numbers = [f"{name}={value}" for name, value in given.items() if value is not None]
    return [*numbers, *(["--retry-failed"] if retry_failed else []), *([] if reuse else ["--no-reuse"])]


def run(plan: "SweepPlan", asked: Asked, *, further: Sequence[str], retry_failed: bool, as_json: bool) -> None:
    """Do what was asked, and print what was done."""
    from emtoolkit.cli import render_slurm
    from emtoolkit.sweeps.slurm import SlurmJobs, due_runs, script_of, submit_sweep, tasks_of
    from emtoolkit.sweeps.slurm_status import status_of

    if asked.action == "print":
        tasks = tasks_of(due_runs(plan, {}, retry_failed=retry_failed))
        typer.echo(script_of(plan, tasks, options=asked.options, parallel=asked.parallel, further=further), nl=False)
    elif asked.action == "status":
        states = status_of(plan, SlurmJobs(plan.directory))
        show(render_slurm.status_json(states) if as_json else render_slurm.status_table(states))
    elif asked.action == "cancel":
        cancelled = SlurmJobs(plan.directory).cancel()
        count = Counter("running" if task.state != "PENDING" else "waiting" for task in cancelled)
        if not cancelled:
            typer.echo("No run of this sweep is in Slurm's queue.")
        else:
            typer.echo(
                f"Cancelled {count['waiting']} waiting and {count['running']} running tasks; those that run save their "
                "state and stop. The same sweep, submitted again, continues them."
            )
    else:
        done = submit_sweep(
            plan, options=asked.options, parallel=asked.parallel, retry_failed=retry_failed, further=further
        )
        typer.echo(render_slurm.submitted(done, here(plan.directory / "slurm"), plan.path))
