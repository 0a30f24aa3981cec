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
    from emtoolkit.sweeps.slurm import SlurmJobs

_ENGINES = ("slurm",)


@dataclass(frozen=True, slots=True)
class SlurmRequest:
    """An action on Slurm that the command line asks for, with its options."""

    action: Literal["submit", "print", "status", "cancel"]
    options: Mapping[str, str | bool] = field(default_factory=dict)
    parallel: int | None = None
    agents: int | None = None

    @classmethod
    def of(
        cls,
        on: str | None,
        options: str,
        *,
        parallel: int | None = None,
        agents: int | None = None,
        print_script: bool = False,
        status: bool = False,
        cancel: bool = False,
    ) -> "SlurmRequest | None":
        """The request in the flags; None without `--on`.

        Raises:
            UserError: another engine, flags of Slurm without `--on slurm`, or two of `--print`, `--status`, `--cancel`.
        """
        from emtoolkit.sweeps.slurm_script import slurm_options

        actions = [name for name, given in (("print", print_script), ("status", status), ("cancel", cancel)) if given]
        numbers = [name for name, value in (("parallel", parallel), ("agents", agents)) if value is not None]
        others = [*(["slurm"] if options else []), *numbers, *actions]
        if on is None:
            if others:
                raise UserError(f"--{others[0]}: needs --on slurm")
            return None
        if on not in _ENGINES:
            raise UserError(f"--on: {shown(on)} is not an engine; expected slurm{nearest(on, _ENGINES)}")
        if len(actions) > 1:
            raise UserError(f"--{actions[0]} and --{actions[1]}: give only one")
        if agents is not None and (parallel is not None or status):
            raise UserError(f"--agents: W&B knows the runs of agents; leave --{'status' if status else 'parallel'} out")
        action: Literal["submit", "print", "status", "cancel"]
        action = "print" if print_script else "status" if status else "cancel" if cancel else "submit"
        return cls(action, slurm_options(options, "--slurm"), parallel, agents)


def further_options(numbers: Mapping[str, int | None], *, retry_failed: bool, reuse: bool) -> list[str]:
    """The options that a task needs to find its runs and to run them alike."""
    given = [f"--{name}={value}" for name, value in numbers.items() if value is not None]
    return [*given, *(["--retry-failed"] if retry_failed else []), *([] if reuse else ["--no-reuse"])]


def run_agents(sweep: str, count: int, request: SlurmRequest) -> None:
    """Submit, print or cancel agents of the W&B sweep `sweep`."""
    from emtoolkit.sweeps.slurm import agents_job

    if sweep.count("/") != 2 or not all(sweep.split("/")):
        raise UserError(f"{sweep}: --agents takes a sweep on W&B; write ENTITY/PROJECT/ID, which 'wandb sweep' prints")
    script, jobs, tasks = agents_job(sweep, count, request.options)
    if request.action == "print":
        typer.echo(script, nl=False)
    elif request.action == "cancel":
        typer.echo(cancelled(jobs, "sweep"))
    else:
        job = jobs.submit(script, tasks, sweep)
        typer.echo(f"Submitted job {job} with {count} agents; script and logs are in {here(jobs.directory)}.")


def run(plan: "SweepPlan", request: SlurmRequest, *, further: Sequence[str], retry_failed: bool, as_json: bool) -> None:
    """Do what `request` asks, and print the outcome."""
    from emtoolkit.cli import render_slurm
    from emtoolkit.sweeps.slurm import SlurmJobs, due_runs, script_of, submit_sweep, tasks_of
    from emtoolkit.sweeps.slurm_status import status_of

    if request.action == "print":
        tasks = tasks_of(due_runs(plan, {}, retry_failed=retry_failed))
        typer.echo(
            script_of(plan, tasks, options=request.options, parallel=request.parallel, further=further), nl=False
        )
    elif request.action == "status":
        states = status_of(plan, SlurmJobs(plan.directory))
        show(render_slurm.status_json(states) if as_json else render_slurm.status_table(states))
    elif request.action == "cancel":
        typer.echo(cancelled(SlurmJobs(plan.directory), "sweep"))
    else:
        done = submit_sweep(
            plan, options=request.options, parallel=request.parallel, retry_failed=retry_failed, further=further
        )
        typer.echo(render_slurm.submitted(done, here(plan.directory / "slurm"), plan.path))


def cancelled(jobs: "SlurmJobs", what: str) -> str:
    """Cancel the tasks of `what`, and say which."""
    tasks = jobs.cancel_all()
    count = Counter("running" if task.state != "PENDING" else "waiting" for task in tasks)
    return (
        f"Cancelled {count['waiting']} waiting and {count['running']} running tasks; those that run save their state "
        f"and stop. The same {what}, submitted again, continues them."
        if tasks
        else f"No task of this {what} is in Slurm's queue."
    )
