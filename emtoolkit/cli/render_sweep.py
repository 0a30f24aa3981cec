"""The output of `sweep`: the planned combinations, and the outcome of each."""

import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from emtoolkit.cli.layout import Column, Records, here, prose
from emtoolkit.cli.render import as_json

if TYPE_CHECKING:
    from emtoolkit.sweeps.inputs import InputDigests
    from emtoolkit.sweeps.plan import SweepPlan, SweepRun
    from emtoolkit.sweeps.runner import Outcome, SweepResult

_COLOURS = {"finished": "green", "failed": "red", "interrupted": "yellow"}


def sweep_plan(plan: "SweepPlan") -> str:
    """The combinations of a sweep: the parameters of each, its state so far, and its command for a shell.

    The shell takes the other lines as comments.
    """
    from emtoolkit.sweeps.attempts import described

    digests = _digests()
    lines = []
    for number, run in enumerate(plan.runs, start=1):
        lines.append(f"# {number}  {described(run.parameters)}  ({_state(run, digests)})")
        lines.append(f"   {_typed(plan, run)}")
    return "\n".join(lines)


def sweep_plan_json(plan: "SweepPlan") -> str:
    """The same as JSON."""
    digests = _digests()
    return as_json([_run(run) | {"state": _state(run, digests)} for run in plan.runs])


def _digests() -> "InputDigests":
    from emtoolkit.sweeps.inputs import InputDigests

    return InputDigests()


def _state(run: "SweepRun", digests: "InputDigests") -> str:
    """The state of the latest attempt; `changed` where a finished one has to run again."""
    if run.before.state == "finished" and not run.is_finished(run.before, digests):
        return "changed"
    return run.before.state


def _typed(plan: "SweepPlan", run: "SweepRun") -> str:
    from emtoolkit.sweeps.command import args_json, as_typed

    command = as_typed(run.command, plan.environment)
    if not run.reads_json_file:
        return command
    directory, file = shlex.quote(str(run.json_file.parent)), shlex.quote(str(run.json_file))
    return f"mkdir -p {directory} && printf %s {shlex.quote(args_json(run.parameters))} > {file} && {command}"


def sweep_table(result: "SweepResult") -> RenderableType:
    """The combinations of a sweep: parameters, state, number of checkpoints, and the directory or the error."""
    from emtoolkit.sweeps.attempts import flat

    parameters = [flat(outcome.run.parameters) for outcome in result.outcomes]
    names = list(dict.fromkeys(name for each in parameters for name in each))
    columns = [
        *(Column(name, "left") for name in names),
        Column("state", "left"),
        Column("checkpoints"),
        Column("directory or error", "left", at_least=40),
    ]
    rows: list[list[RenderableType]] = []
    for outcome, values in zip(result.outcomes, parameters, strict=True):
        state = outcome.attempt.state
        rows.append(
            [
                *(str(values[name]) if name in values else "—" for name in names),
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
    return {
        "parameters": dict(run.parameters),
        "command": run.argv,
        "log": str(run.log),
        "directory": directory,
    }
