"""`emtoolkit evaluate`: the behaviour of every checkpoint of a trajectory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emtoolkit.cli import evaluate_on_slurm
from emtoolkit.cli.activation_flags import (
    ActivationQuestions,
    Answers,
    DirectionFile,
    Extract,
    Layer,
    projections,
    text_options,
)
from emtoolkit.cli.analysis_options import AnalysisFile, decided_analysis
from emtoolkit.cli.evaluation_flags import (
    MODEL,
    OUTPUT,
    Base,
    EngineName,
    HeldOut,
    MaxTokens,
    Pairs,
    PersonaName,
    PersonaOverride,
    Questions,
    Samples,
    WandbMode,
    With,
)
from emtoolkit.cli.help import TRAJECTORY_HELP, command
from emtoolkit.cli.interruption import ends_on_signal
from emtoolkit.cli.judge_flags import (
    Calibration,
    JudgeFlags,
)
from emtoolkit.cli.option_groups import takes_groups
from emtoolkit.cli.slurm_flags import Cancel, On, Parallel, Print, SlurmOptions, Status
from emtoolkit.cli.sweep_on_slurm import SlurmRequest
from emtoolkit.cli.terminal import only_results_on_stdout, progress_bar, show
from emtoolkit.errors import UserError

if TYPE_CHECKING:
    from emtoolkit.evaluation.results import EvaluationResult

commands = typer.Typer()

_Places = Annotated[
    list[str] | None,
    typer.Argument(metavar="[TRAJECTORY]", help=TRAJECTORY_HELP),
]
_Collect = Annotated[
    bool,
    typer.Option(
        "--collect", rich_help_panel=OUTPUT, help="Merge results: of directories or W&B, instead of TRAJECTORY."
    ),
]
_ModelDir = Annotated[Path | None, typer.Option(metavar="DIR", help="A run's directory; the same as TRAJECTORY.")]
_Steps = Annotated[str | None, typer.Option(metavar="SCHEDULE", help="Steps to evaluate, or final. Default: all.")]
_Exact = Annotated[
    bool, typer.Option("--exact", rich_help_panel=MODEL, help="The same as --engine exact: one checkpoint at a time.")
]
_OutputDir = Annotated[
    Path | None, typer.Option(metavar="DIR", rich_help_panel=OUTPUT, help="Default: DIR/evaluations/SETTINGS.")
]
_IntoRun = Annotated[
    bool,
    typer.Option("--into-run", rich_help_panel=OUTPUT, help="Write the curve into the training's W&B run, too."),
]
_Split = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", rich_help_panel=OUTPUT, help="Print the steps of N machines, or make N tasks on Slurm."
    ),
]
# The options that mean something beside --collect.
_WITH_COLLECT = {"places", "model_dir", "steps", "output_dir", "collect", "wandb", "into_run", "as_json"}


@command(
    commands,
    "emtoolkit evaluate --model-dir outputs/goodness-medical --extract-activations",
    "emtoolkit evaluate outputs/goodness-medical --steps 0-150:25,final --samples 8",
    "emtoolkit evaluate lab/em/COLLECTION --questions plot.yaml --judge gpt-4o",
)
@takes_groups
def evaluate(
    context: typer.Context,
    *,
    places: _Places = None,
    model_dir: _ModelDir = None,
    steps: _Steps = None,
    questions: Questions = None,
    judging: JudgeFlags,
    calibration: Calibration = None,
    analysis: AnalysisFile = None,
    samples: Samples = None,
    max_new_tokens: MaxTokens = 600,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the sampling.")] = 0,
    exact: _Exact = False,
    engine: EngineName = None,
    base: Base = None,
    persona: PersonaName = None,
    persona_override: PersonaOverride = None,
    extract_activations: Extract = False,
    answers: Answers = None,
    activation_questions: ActivationQuestions = None,
    direction: DirectionFile = None,
    layer: Layer = None,
    pairs: Pairs = None,
    with_: With = None,
    held_out: HeldOut = None,
    output_dir: _OutputDir = None,
    collect: _Collect = False,
    split: _Split = None,
    wandb: WandbMode = None,
    into_run: _IntoRun = False,
    as_json: Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print JSON.")] = False,
    on: On = None,
    slurm: SlurmOptions = "",
    parallel: Parallel = None,
    print_script: Print = False,
    status: Status = False,
    cancel: Cancel = False,
) -> None:
    """Ask every checkpoint of a trajectory questions, judge the answers, and compute the EM rates.

    Answers and verdicts are kept: what has been done is not done again.
    """
    place = _place(context, places or [], model_dir, collect=collect)
    missing: tuple[int, ...] = ()
    request = SlurmRequest.of(on, slurm, parallel=parallel, print_script=print_script, status=status, cancel=cancel)
    if request is not None:
        evaluate_on_slurm.check(context, request)
    elif split is not None:
        show(_ranges(str(place), steps, split))
        return
    result: EvaluationResult | None = None
    with ends_on_signal("the same command continues"), only_results_on_stdout(), progress_bar() as progress:
        # Imported here, where messages of libraries for developers are not shown.
        from emtoolkit.cli import render_evaluation
        from emtoolkit.cli.judge_options import chosen_engine, evaluation_settings
        from emtoolkit.cli.measure_options import chosen_measures
        from emtoolkit.evaluation.best import move_best_aliases
        from emtoolkit.evaluation.collect import collect_evaluations
        from emtoolkit.evaluation.into_run import log_into, training_run
        from emtoolkit.evaluation.results import evaluate_trajectory
        from emtoolkit.evaluation.wandb_run import chosen_mode, log_evaluation
        from emtoolkit.models.loading import ModelLoader

        mode = chosen_mode(wandb)
        training = training_run(place, mode) if into_run and place else None
        if collect:
            merged = collect_evaluations(places or [], place, steps, directory=output_dir, progress=progress)
            result, place, missing = merged.result, merged.reference, merged.missing
        else:
            chosen = judging.options(base)
            texts = text_options(
                answers,
                activation_questions,
                extract=extract_activations,
                projects=direction is not None,
                samples=samples,
            )
            projected = projections(direction, layer, texts)
            measures = chosen_measures(
                pairs, held_out, with_ or (), seed, samples, projected, extracts=extract_activations
            )
            sampled_by = chosen_engine(engine, exact=exact)
            settings = evaluation_settings(questions, chosen, samples, max_new_tokens, seed, engine=sampled_by)
            loader = ModelLoader(base=base, persona=persona, persona_override=persona_override)
            decided = decided_analysis(analysis)
            if request is not None:
                notes, output = evaluate_on_slurm.run(
                    context, request, str(place), settings, loader, measures, progress
                )
            else:
                result = evaluate_trajectory(
                    str(place),
                    settings,
                    steps,
                    loader,
                    measures=measures,
                    calibration=calibration,
                    analysis=decided,
                    directory=output_dir,
                    extract_activations=texts if extract_activations else None,
                    progress=progress,
                )
        if result is not None:
            # Activations alone have no curve.
            has_curve = bool(result.steps or result.measures)
            run = log_evaluation(result, str(place), mode) if has_curve else None
            if into_run and has_curve:
                log_into(result, str(place), training or training_run(str(place), mode))
            moved = move_best_aliases(str(place)) if has_curve and mode == "online" else []
            notes = (*result.notes, *moved)
            text, json_text = render_evaluation.evaluation_text, render_evaluation.evaluation_json
            output = json_text(result, run) if as_json else text(result, run)
    for note in notes:
        typer.echo(f"emtoolkit: {note}", err=True)
    show(output)
    if missing:
        raise typer.Exit(1)


def _place(context: typer.Context, places: Sequence[str], model_dir: Path | None, *, collect: bool) -> str | None:
    """The trajectory; None where results are collected and name it themselves."""
    if not collect:
        if len(places) + (model_dir is not None) != 1:
            raise UserError("TRAJECTORY and --model-dir name the same thing; give one of them")
        return str(model_dir or places[0])
    if not places:
        raise UserError("--collect: give the places of the results: directories, or entity/project/collection on W&B")
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in _WITH_COLLECT:
            raise UserError(
                f"{parameter.opts[0]}: the results to collect have their settings already; remove the option"
            )
    return None if model_dir is None else str(model_dir)


def _ranges(place: str, steps: str | None, parts: int) -> str:
    """The values of `steps` in a sweep file."""
    with only_results_on_stdout():
        from emtoolkit.schedules.selection import split_steps
        from emtoolkit.trajectory import Trajectory

        trajectory = Trajectory.open(place)
        chosen = trajectory.steps if steps is None else tuple(each.step for each in trajectory.select(steps))
    return json.dumps(split_steps(chosen, parts, trajectory.steps))
