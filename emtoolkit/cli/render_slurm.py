"""The output of `sweep --on slurm`."""

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
    from emtoolkit.sweeps.evaluations import SlurmEvaluation, SubmittedEvaluation
    from emtoolkit.sweeps.slurm import SlurmJobs, Submitted
    from emtoolkit.sweeps.slurm_status import RunStatus

_COLOURS = {"finished": "green", "failed": "red", "interrupted": "yellow", "running": "cyan"}


def submitted(done: "Submitted", directory: str, file: Path) -> str:
    """The submitted job, and the commands that go on from it."""
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


def submitted_evaluation(done: "SubmittedEvaluation", evaluation: "SlurmEvaluation", home: Path) -> str:
    """The submitted job, and the commands that go on from it."""
    if done.job is None:
        if not done.queued:
            return all_evaluated(evaluation, home)
        return f"No task was submitted: {done.queued} steps are in the queue already."
    count = sum(map(len, done.tasks))
    collects = (
        f", and job {done.collecting}, which collects the results in {here(home)} when all tasks have ended"
        if done.collecting is not None
        else ""
    )
    return (
        f"Submitted job {done.job} with {len(done.tasks)} tasks for {count} of {len(evaluation.steps)} steps"
        f"{collects}; scripts and logs are in {here(evaluation.jobs_directory / 'slurm')}.\n"
        "The same command with --status says what has become of them."
    )


def all_evaluated(evaluation: "SlurmEvaluation", home: Path) -> str:
    """That nothing is left to submit."""
    return (
        f"No task is due: all {len(evaluation.steps)} steps are evaluated, in {here(home)}; the same command without "
        "--on slurm prints the results."
    )


def evaluation_status(
    evaluation: "SlurmEvaluation", states: "Sequence[RunStatus]", jobs: "SlurmJobs", home: Path
) -> RenderableType:
    """The ranges of steps, what is not submitted, and what has become of the job that collects."""
    from emtoolkit.schedules.steps import elided
    from emtoolkit.sweeps.evaluations import collecting_log, not_submitted

    sentences = []
    if left := not_submitted(evaluation, states):
        sentences.append(f"Not submitted: step{'s' * (len(left) > 1)} {elided(left)}.")
    if (found := collecting_log(evaluation, jobs)) is not None:
        log, queued = found
        state = "has ended" if queued is None else "waits" if queued.state == "PENDING" else "runs"
        sentences.append(f"The job that collects the results in {here(home)} {state}; its log is {here(log)}.")
    table = [status_table(states)] if states else []
    return Group(*table, *map(prose, sentences))


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
