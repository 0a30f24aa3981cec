"""What `sweep` prints: the planned combinations, and the outcome of each."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from emtoolkit.cli.layout import Column, Records, here, line, prose
from emtoolkit.cli.render import as_json

if TYPE_CHECKING:
    from emtoolkit.sweeps.plan import SweepPlan, SweepRun
    from emtoolkit.sweeps.runner import Outcome, SweepResult

_COLOURS = {"finished": "green", "failed": "red", "interrupted": "yellow"}


def sweep_plan(plan: "SweepPlan") -> RenderableType:
    """The combinations of a sweep: the parameters of each, its state so far, and its command for a shell."""
    from emtoolkit.sweeps.command import as_typed

    lines = []
    for number, run in enumerate(plan.runs, start=1):
        values = " ".join(f"{name}={value}" for name, value in run.parameters.items())
        lines += [line(f"{number}  {values}  ({run.before.state})"), line(f"   {as_typed(run.argv)}")]
    return Group(*lines)


def sweep_plan_json(plan: "SweepPlan") -> str:
    """The same as JSON."""
    return as_json([_run(run) | {"state": run.before.state} for run in plan.runs])


def sweep_table(result: "SweepResult") -> RenderableType:
    """The combinations of a sweep: parameters, state, number of checkpoints, and the directory or the error."""
    names = list(result.outcomes[0].run.parameters)
    columns = [
        *(Column(name, "left") for name in names),
        Column("state", "left"),
        Column("checkpoints"),
        Column("directory or error", "left", at_least=40),
    ]
    rows: list[list[RenderableType]] = []
    for outcome in result.outcomes:
        state = outcome.attempt.state
        rows.append(
            [
                *(str(outcome.run.parameters[name]) for name in names),
                Text(state, style=_COLOURS.get(state, "")),
                "—" if outcome.checkpoints is None else str(outcome.checkpoints),
                _directory_or_error(outcome),
            ]
        )
    states = Counter(outcome.attempt.state for outcome in result.outcomes)
    summary = f"{', '.join(f'{count} {state}' for state, count in states.items())}."
    advice = [prose("--retry-failed runs the failed combinations again.")] if states["failed"] else []
    return Group(Records(columns, rows), prose(summary), *advice)


def _directory_or_error(outcome: "Outcome") -> str:
    run, attempt = outcome.run, outcome.attempt
    if attempt.error is not None:
        return f"{attempt.error} (see {here(run.log)})"
    return here(run.log if run.directory is None else run.directory)


def sweep_json(result: "SweepResult") -> str:
    """The outcomes as JSON, with the commands."""
    return as_json(
        [
            _run(outcome.run)
            | {
                "state": outcome.attempt.state,
                "exit_code": outcome.attempt.exit_code,
                "error": outcome.attempt.error,
                "checkpoints": outcome.checkpoints,
            }
            for outcome in result.outcomes
        ]
    )


def _run(run: "SweepRun") -> dict[str, Any]:
    directory = None if run.directory is None else str(run.directory)
    return {"parameters": dict(run.parameters), "command": run.argv, "log": str(run.log), "directory": directory}
