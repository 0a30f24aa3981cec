"""What `sweep --on slurm` prints."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from emtoolkit.cli.layout import Column, Records, here, prose
from emtoolkit.cli.render import as_json
from emtoolkit.shell_command import shell_command

if TYPE_CHECKING:
    from emtoolkit.sweeps.slurm import Submitted
    from emtoolkit.sweeps.slurm_status import RunStatus

_COLOURS = {"finished": "green", "failed": "red", "interrupted": "yellow", "running": "cyan"}


def submitted(done: "Submitted", directory: str, file: Path) -> str:
    """What was submitted, and how to go on."""
    others = [
        *([f"{done.queued} are in the queue already"] if done.queued else []),
        *([f"{done.settled} have finished or failed"] if done.settled else []),
    ]
    if done.job is None:
        return f"No run was submitted: {', '.join(others)}."
    rest = f" ({', '.join(others)})" if others else ""
    return (
        f"Submitted job {done.job} with {done.runs} runs{rest}; script and logs are in {directory}.\n"
        f"{shell_command('emtoolkit', 'sweep', file, '--on', 'slurm', '--status')}    # what has become of them"
    )


def status_table(states: "Sequence[RunStatus]") -> RenderableType:
    """Each run with its parameters, its state, its step, how often it was started, and its task or error."""
    from emtoolkit.sweeps.attempts import flat

    parameters = [flat(each.run.parameters) for each in states]
    names = list(dict.fromkeys(name for each in parameters for name in each))
    columns = [
        *(Column(name, "left") for name in names),
        Column("state", "left"),
        Column("step"),
        Column("starts"),
        Column("task, directory or error", "left", at_least=30),
    ]
    rows: list[list[RenderableType]] = [
        [
            *(str(values[name]) if name in values else "—" for name in names),
            Text(each.state, style=_COLOURS.get(each.state, "")),
            "—" if each.step is None else f"{each.step[0]} of {each.step[1]}",
            str(each.starts),
            _where(each),
        ]
        for each, values in zip(states, parameters, strict=True)
    ]
    count = Counter(each.state for each in states)
    return Group(Records(columns, rows), prose(f"{', '.join(f'{number} {state}' for state, number in count.items())}."))


def _where(each: "RunStatus") -> str:
    if each.task is not None:
        return f"{each.task} ({each.reason})" if each.reason not in ("", "None") else each.task
    if each.error is not None:
        return f"{each.error} (see {here(each.run.log)})"
    return here(each.run.log if each.run.directory is None else each.run.directory)


def status_json(states: "Sequence[RunStatus]") -> str:
    """The same as JSON."""
    return as_json(
        [
            {
                "parameters": dict(each.run.parameters),
                "key": each.run.key,
                "state": each.state,
                "step": None if each.step is None else each.step[0],
                "last_step": None if each.step is None else each.step[1],
                "starts": each.starts,
                "task": each.task,
                "reason": each.reason,
                "error": each.error,
                "log": str(each.run.log),
            }
            for each in states
        ]
    )
