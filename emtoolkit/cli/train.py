"""`emtoolkit train` and `emtoolkit plan`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emtoolkit.cli.help import Command, command
from emtoolkit.cli.interruption import ends_on_signal
from emtoolkit.cli.terminal import only_results_on_stdout, progress_bar, show, training_bar
from emtoolkit.errors import UserError
from emtoolkit.launch import is_local_main_process, is_requeued
from emtoolkit.models.peft_import import import_peft
from emtoolkit.stop_signals import notices
from emtoolkit.training.option_words import plain_words
from emtoolkit.training.options import TrainOptions, takes_train_options

if TYPE_CHECKING:
    from emtoolkit.config.sections import RunConfig
    from emtoolkit.training.result import RunResult

commands = typer.Typer()
_EVALUATION = "Evaluation"

_Count = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Largest number of runs of a sweep.", rich_help_panel="Run and output"),
]
_Questions = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Question file. Default: the config's.", rich_help_panel=_EVALUATION),
]
_Samples = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Answers to each wording.", rich_help_panel=_EVALUATION)
]
_Detect = Annotated[
    float | None,
    typer.Option(metavar="RATE", help="EM rate to detect, such as 0.10: print the power.", rich_help_panel=_EVALUATION),
]
_Rate = Annotated[
    float | None,
    typer.Option(metavar="RATE", help="True EM rate. Default: twice --detect.", rich_help_panel=_EVALUATION),
]


class TrainCommand(Command):
    """A command with the options of `train`, to which every key of the config belongs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = args if ctx.resilient_parsing else plain_words(args, self.params, ctx.command_path)
        parsed: list[str] = super().parse_args(ctx, words)
        return parsed


@command(
    commands,
    "emtoolkit train sandbox --persona goodness --schedule dense-early",
    "emtoolkit train config.yaml --save-steps 25 --set training.epochs=2",
    "emtoolkit train config.yaml --resume",
    cls=TrainCommand,
)
@takes_train_options()
def train(options: TrainOptions) -> None:
    """Fine-tune a model, save at the scheduled steps, and log each checkpoint to W&B.

    Every key of the config is an option as well, such as --training.learning_rate=1e-4 or --lora.r 8.
    """
    config = options.to_config()
    others = notices(config.checkpointing.signals)
    with ends_on_signal("run the same command again", others), only_results_on_stdout():
        from emtoolkit.cli import render

        if options.dry_run:
            import_peft([(config.model, config.training)])
            from emtoolkit.cli import render_plan
            from emtoolkit.training import cost

            planned = cost.plan_one(config, bar=progress_bar)
            text = render_plan.plan_json(planned.plan) if options.as_json else render_plan.plan_table(planned)
        else:
            # Slurm runs the same command again, in the same directory.
            result = _trained(config, resume=options.resume or is_requeued())
            text = render.checkpoints_json(result.checkpoints) if options.as_json else render.result_text(result)
    if is_local_main_process():
        show(text)


def _trained(config: "RunConfig", *, resume: bool) -> "RunResult":
    from emtoolkit.artifacts.client_process import end_client
    from emtoolkit.saving.signals import TrainingInterrupted
    from emtoolkit.training.reusing import take_without_training

    try:
        # A run that trains nothing does not import torch, which takes seconds.
        if (taken := take_without_training(config, resume=resume)) is not None:
            return taken
        import_peft([(config.model, config.training)])
        from emtoolkit.training import run

        return run.train(config, resume=resume, bar=progress_bar, step_bar=training_bar())
    except TrainingInterrupted as interruption:
        end_client()
        if is_local_main_process():
            sentence = f"{interruption}; the state is saved, and the same command with --resume continues"
            typer.echo(f"emtoolkit: {sentence}", err=True)
        raise typer.Exit(128 + interruption.signal_number) from None


@command(
    commands,
    "emtoolkit plan sandbox --schedule every:25",
    "emtoolkit plan sweeps/seeds.yaml --json",
    "emtoolkit plan config.yaml --detect 0.10 --questions plot.yaml --samples 50",
    cls=TrainCommand,
)
@takes_train_options(
    without=("resume", "dry_run"),
    config=typer.Argument(metavar="CONFIG|SWEEP", help="A config as for train, or a sweep file."),
    seed=typer.Option(
        metavar="N", help="Seed of the run, or of a sweep's random search.", rich_help_panel="Run and output"
    ),
)
def plan(
    options: TrainOptions,
    count: _Count = None,
    questions: _Questions = None,
    samples: _Samples = None,
    detect: _Detect = None,
    rate: _Rate = None,
) -> None:
    """Print the cost of a run or of a sweep: steps, checkpoints, disk, memory, answers, judge calls."""
    if rate is not None and detect is None:
        raise UserError(f"--rate: {rate:g} is the true rate for --detect; give both")
    configs, is_sweep = _configs(options, count)
    with only_results_on_stdout():
        import_peft((config.model, config.training) for _, config in configs)
        from emtoolkit.cli import render_plan
        from emtoolkit.training import cost
        from emtoolkit.training.asked import asked_questions, detection_of, with_questions

        found, asked = None, None
        changed = questions is not None or samples is not None
        if changed or detect is not None:
            asked = asked_questions([config.evaluation for _, config in configs], questions, samples)
        if detect is not None:
            with progress_bar() as progress:
                found = detection_of(detect, rate, asked, samples, progress)
        runs = cost.plan_several(configs, bar=progress_bar)
        runs = [with_questions(run, asked, samples) for run in runs] if changed else runs
        total = cost.totals(runs)
    if options.as_json:
        show(render_plan.runs_json(runs, total, found))
    else:
        show(render_plan.runs_table(runs, total, found) if is_sweep else render_plan.plan_table(runs[0], found))


def _configs(options: TrainOptions, count: int | None) -> "tuple[list[tuple[Mapping[str, Any], RunConfig]], bool]":
    """The runs of a config or of a sweep file, and whether it is a sweep file."""
    from emtoolkit.sweeps.plan import plan_sweep
    from emtoolkit.sweeps.search import is_sweep

    path = Path(options.config)
    if not is_sweep(path):
        if count is not None:
            raise UserError(f"--count: {count}: {path} is a config, which is one run; remove the flag")
        return [({}, options.to_config())], False
    # Of the options of a run, a sweep file takes the seed and the output format.
    if set_by_sweep := [flag for flag in options.flags_given() if flag not in ("--seed", "--json")]:
        raise UserError(
            f"{set_by_sweep[0]}: the sweep file {path} sets the options of its runs; remove the flag "
            "(a sweep file takes --count, --seed, --json, and the options of the evaluation)"
        )
    return list(plan_sweep(path, count=count, seed=options.seed or 0).configs()), True
