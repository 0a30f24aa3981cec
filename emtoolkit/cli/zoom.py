"""`emtoolkit zoom`: the bracket of an onset, narrowed by steps that are made again inside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emtoolkit.cli.analysis_options import (
    AnalysisFile,
    Falls,
    Level,
    Metric,
    Threshold,
    chosen_event,
    decided_analysis,
)
from emtoolkit.cli.evaluation_flags import (
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
from emtoolkit.cli.help import command
from emtoolkit.cli.interruption import ends_on_signal
from emtoolkit.cli.judge_flags import (
    JudgeFlags,
)
from emtoolkit.cli.option_groups import takes_groups
from emtoolkit.cli.output_formats import Json
from emtoolkit.cli.refine import Config, Yes, announce, ask
from emtoolkit.cli.terminal import only_results_on_stdout, progress_bar, show, training_bar
from emtoolkit.errors import CheckpointError, UserError, nearest, shown
from emtoolkit.launch import process_count

if TYPE_CHECKING:
    from emtoolkit.evaluation.decided import DecidedAnalysis
    from emtoolkit.evaluation.measures import Measure
    from emtoolkit.evaluation.result_files import StoredEvaluation
    from emtoolkit.evaluation.results import EvaluationResult
    from emtoolkit.evaluation.run import EvaluationSettings
    from emtoolkit.models.loading import ModelLoader

commands = typer.Typer()

_CONTINUES = "the same command continues"

_Directory = Annotated[Path, typer.Argument(metavar="TRAJECTORY", help="Output directory of a finished run.")]
_Until = Annotated[int, typer.Option(min=1, metavar="N", help="Width of the bracket, in steps.")]
_Steps = Annotated[
    str | None,
    typer.Option(metavar="SCHEDULE", help="Steps of the first evaluation. Default: all that the training saved."),
]
_TheseQuestions = Annotated[
    bool, typer.Option("--these-questions", help="The bracket for these questions in place of new ones.")
]


@command(
    commands,
    "emtoolkit zoom outputs/goodness-medical --until 5",
    "emtoolkit zoom outputs/goodness-medical --metric changed --threshold 0.5",
    "emtoolkit zoom outputs/goodness-medical --questions plot.yaml --yes",
)
@takes_groups
def zoom(
    trajectory: _Directory,
    *,
    until: _Until = 5,
    metric: Metric = None,
    threshold: Threshold = None,
    level: Level = False,
    falls: Falls = False,
    these_questions: _TheseQuestions = False,
    analysis: AnalysisFile = None,
    steps: _Steps = None,
    questions: Questions = None,
    samples: Samples = None,
    max_new_tokens: MaxTokens = 600,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the sampling.")] = 0,
    engine: EngineName = None,
    judging: JudgeFlags,
    pairs: Pairs = None,
    with_: With = None,
    held_out: HeldOut = None,
    base: Base = None,
    persona: PersonaName = None,
    persona_override: PersonaOverride = None,
    config: Config = None,
    wandb: WandbMode = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Find the steps between which a behaviour appeared, to a few steps: evaluate, make steps inside, evaluate again.

    Answers and steps are kept: what has been done is not done again.
    """
    with ends_on_signal(_CONTINUES), only_results_on_stdout():
        if process_count() > 1:
            raise UserError("zoom: runs in one process; start the command without a launcher")
        # Imported here, where messages of libraries for developers are not shown.
        from emtoolkit.cli import render_zoom
        from emtoolkit.cli.judge_options import chosen_engine, evaluation_settings
        from emtoolkit.cli.measure_options import chosen_measures
        from emtoolkit.evaluation.wandb_run import chosen_mode, log_evaluation
        from emtoolkit.models.loading import ModelLoader
        from emtoolkit.zoom import zoom as run_zoom

        mode = chosen_mode(wandb)
        decided = decided_analysis(analysis)
        event = chosen_event(decided, metric, threshold, level=level, falls=falls)
        inference = "these_questions" if these_questions else "new_questions" if decided is None else decided.inference
        coarse = _coarse(trajectory, steps)
        chosen = judging.options(base)
        sampled_by = chosen_engine(engine, exact=False)
        work = _Work(
            trajectory,
            evaluation_settings(questions, chosen, samples, max_new_tokens, seed, engine=sampled_by),
            ModelLoader(base=base, persona=persona, persona_override=persona_override),
            chosen_measures(pairs, held_out, with_ or (), seed, samples),
            decided,
            config,
            base,
            yes,
        )
        _check_metric(event.metric, work)
        found = run_zoom(event, until, coarse, inference=inference, work=work)
        # Every answer is there already: this only reads.
        result = work.results([*coarse, *found.evaluated])
        run = log_evaluation(result, str(trajectory), mode)
    for note in work.notes:
        typer.echo(f"emtoolkit: {note}", err=True)
    show(render_zoom.zoom_json(found, result, run) if as_json else render_zoom.zoom_text(found, result, run))


def _check_metric(metric: str, work: "_Work") -> None:
    """Refuse an unknown metric before anything is sampled; what a measure gives is known after its first value only.

    Raises:
        UserError: the evaluation has no such metric.
    """
    from emtoolkit.analysis.curves import OF_ANSWERS

    samples = any(question.samples_per_paraphrase for question in work.settings.questions)
    if samples and not work.measures and metric not in OF_ANSWERS:
        raise UserError(
            f"zoom: there is no metric {shown(metric)} without a measure; answers have {', '.join(OF_ANSWERS)}"
            f"{nearest(metric, OF_ANSWERS)}"
        )


@dataclass(frozen=True)
class _Work:
    """The `Work` of a zoom: evaluations as `emtoolkit evaluate` makes them, and steps as `emtoolkit refine` does."""

    directory: Path
    settings: "EvaluationSettings"
    loader: "ModelLoader"
    measures: "Sequence[Measure]"
    analysis: "DecidedAnalysis | None"
    config: Path | None
    base: str | None
    yes: bool
    notes: dict[str, None] = field(default_factory=dict)

    def existing(self) -> list[int]:
        from emtoolkit.checkpoints.listing import list_checkpoints

        return [info.step for info in list_checkpoints(self.directory) if info.complete]

    def evaluate(self, steps: Sequence[int]) -> "StoredEvaluation":
        from emtoolkit.evaluation.result_files import read_evaluation

        return read_evaluation(self.results(steps).directory)

    def results(self, steps: Sequence[int]) -> "EvaluationResult":
        from emtoolkit.evaluation.results import evaluate_trajectory

        with progress_bar() as progress:
            found = evaluate_trajectory(
                str(self.directory),
                self.settings,
                ",".join(map(str, steps)),
                self.loader,
                measures=self.measures,
                analysis=self.analysis,
                progress=progress,
            )
        self.notes.update(dict.fromkeys(found.notes))
        return found

    def make(self, steps: Sequence[int]) -> int:
        from emtoolkit.training.refine import refine
        from emtoolkit.training.refinement import plan_refinement

        text = ",".join(map(str, steps))
        plan = plan_refinement(self.directory, text, config=self.config, base=self.base, bar=progress_bar)
        announce(plan)
        ask(plan, yes=self.yes)
        return refine(plan, bar=progress_bar, step_bar=training_bar()).trained_steps


def _coarse(directory: Path, steps: str | None) -> tuple[int, ...]:
    """The steps of the first evaluation: those that `steps` selects, else those that the training itself saved.

    Raises:
        UserError: the directory holds no finished run, or `steps` selects no checkpoint.
    """
    from emtoolkit.trajectory import Trajectory

    if not directory.is_dir():
        raise CheckpointError(
            f"{directory}: there is no such directory; zoom makes checkpoints, so a trajectory on W&B or the hub is "
            "downloaded first (emtoolkit download)"
        )
    trajectory = Trajectory.open(directory)
    if steps is not None:
        return tuple(each.step for each in trajectory.select(steps))
    saved = tuple(each.step for each in trajectory if each.metadata.get("refined") is not True)
    if len(saved) < 2:
        raise UserError(f"{directory}: zoom needs two checkpoints to begin with, and there is {len(saved)}")
    return saved
