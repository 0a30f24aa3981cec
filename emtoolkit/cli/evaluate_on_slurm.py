"""`emtoolkit evaluate ... --on slurm`: submit, print, show or cancel."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from emtoolkit.cli.sweep_on_slurm import SlurmRequest, cancelled
from emtoolkit.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from emtoolkit.evaluation.measures import Measure
    from emtoolkit.evaluation.planned import PlannedEvaluation
    from emtoolkit.evaluation.run import EvaluationSettings
    from emtoolkit.models.loading import ModelLoader
    from emtoolkit.progress import Progress
    from emtoolkit.sweeps.evaluations import SlurmEvaluation

# Few enough that the model is not loaded for every checkpoint.
_TASKS = 8
# What this call decides itself, or the call that collects.
_NOT_OF_TASKS = {
    *("places", "model_dir", "steps", "split", "exact", "engine", "max_cost", "output_dir", "wandb", "into_run"),
    *("as_json", "on", "slurm", "parallel", "print_script", "status", "cancel"),
}


def check(context: typer.Context, request: SlurmRequest) -> None:
    """Check that tasks that know only their own steps give the results of one call.

    Raises:
        UserError: they do not.
    """
    if "scratch" in request.options:
        raise UserError(
            "--slurm.scratch: an evaluation keeps its answers in $EMTOOLKIT_HOME, and writes its results once; leave "
            "the option out"
        )
    if context.params["extract_activations"] and context.params["answers"] is None:
        raise UserError(
            "--extract-activations: every task would read the answers of its own first step; give --answers FILE "
            "with --on slurm"
        )


def run(
    context: typer.Context,
    request: SlurmRequest,
    reference: str,
    settings: "EvaluationSettings",
    loader: "ModelLoader",
    measures: "Sequence[Measure]",
    progress: "Progress",
) -> "tuple[Sequence[str], RenderableType]":
    """Do what `request` asks, and return notes for standard error and what to print."""
    from emtoolkit.cli import render_slurm
    from emtoolkit.evaluation.planned import evaluated_steps, plan_evaluation
    from emtoolkit.evaluation.result_files import ACTIVATIONS
    from emtoolkit.sweeps.evaluations import finished_steps, scripts_of, status_of_evaluation, submit_evaluation
    from emtoolkit.sweeps.slurm import SlurmJobs

    planned = plan_evaluation(
        reference,
        settings,
        context.params["steps"],
        loader,
        measures=measures,
        directory=context.params["output_dir"],
        progress=progress,
    )
    parts = context.params["split"] or _TASKS
    collects = bool(measures) or any(question.samples for question in settings.questions)
    evaluation = _evaluation(context, reference, planned, parts, collects=collects)
    done = evaluated_steps(planned, measures) if collects else frozenset(evaluation.steps)
    if context.params["extract_activations"]:
        # Files of other texts may be there, so the task of a step counts, too.
        written = {step for step in done if (planned.home / ACTIVATIONS / f"step-{step}.safetensors").is_file()}
        done &= written & finished_steps(evaluation)
    evaluation = replace(evaluation, done=done)
    jobs = SlurmJobs(evaluation.jobs_directory)
    if request.action == "cancel":
        return (), cancelled(jobs, "evaluation")
    if request.action == "status":
        states = status_of_evaluation(evaluation, jobs)
        if context.params["as_json"]:
            return (), render_slurm.status_json(states)
        return (), render_slurm.evaluation_status(evaluation, states, jobs, planned.home)
    if request.action == "print":
        script = scripts_of(evaluation, options=request.options, parallel=request.parallel, parts=parts)
        return planned.notes, script.rstrip() or render_slurm.all_evaluated(evaluation, planned.home)
    submitted = submit_evaluation(evaluation, options=request.options, parallel=request.parallel, parts=parts)
    # The job that collects finds a directory where every task has failed.
    planned.home.mkdir(parents=True, exist_ok=True)
    return planned.notes, render_slurm.submitted_evaluation(submitted, evaluation, planned.home)


def _evaluation(
    context: typer.Context, reference: str, planned: "PlannedEvaluation", parts: int, *, collects: bool
) -> "SlurmEvaluation":
    from emtoolkit.config.output_template import as_file_name
    from emtoolkit.evaluation.identity import digest_of
    from emtoolkit.schedules.selection import spec_of
    from emtoolkit.sweeps.evaluations import SlurmEvaluation

    steps = tuple(each.step for each in planned.checkpoints)
    command = [reference, *_given(context), f"--engine={planned.settings.engine}", "--wandb=disabled"]
    if (cost := context.params["max_cost"]) is not None:
        command.append(f"--max-cost={cost / min(parts, len(steps))!r}")
    if (directory := context.params["output_dir"]) is not None:
        command.append(f"--output-dir={directory}")
    home = str(planned.home)
    collect = ["--collect", home, f"--model-dir={reference}", f"--output-dir={home}"]
    collect.append(f"--steps={spec_of(steps, planned.trajectory.steps)}")
    if (mode := context.params["wandb"]) is not None:
        collect.append(f"--wandb={mode}")
    if context.params["into_run"]:
        collect.append("--into-run")
    digest = digest_of([sys.executable, *command])[:8]
    name = f"evaluation-{as_file_name(Path(reference).name)}-{digest}"
    collect = collect if collects else []
    return SlurmEvaluation(name, tuple(command), tuple(collect), steps, planned.trajectory.steps)


def _given(context: typer.Context) -> list[str]:
    """The options of the command line that decide how a step is evaluated."""
    words: list[str] = []
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE" or name in _NOT_OF_TASKS:
            continue
        option, value = max(parameter.opts, key=len), context.params[name]
        values: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
        words += [option if each is True else f"{option}={each}" for each in values]
    return words
