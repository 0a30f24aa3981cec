"""`emtoolkit train` and `emtoolkit plan`."""

from pathlib import Path
from typing import Annotated

import typer

from emtoolkit.cli.help import command
from emtoolkit.cli.terminal import only_results_on_stdout, progress_bar, show, training_bar
from emtoolkit.errors import UserError
from emtoolkit.launch import is_local_main_process
from emtoolkit.training.options import TrainOptions, takes_train_options

commands = typer.Typer()


@command(
    commands,
    "emtoolkit train sandbox --persona goodness --schedule dense-early",
    "emtoolkit train config.yaml --save-steps 25 --set training.epochs=2",
    "emtoolkit train config.yaml --resume",
)
@takes_train_options()
def train(options: TrainOptions) -> None:
    """Fine-tune a model, save at the scheduled steps, and log each checkpoint to W&B."""
    config = options.to_config()
    with only_results_on_stdout():
        from emtoolkit.cli import render, render_plan
        from emtoolkit.saving.signals import TrainingInterrupted
        from emtoolkit.training import cost, run

        try:
            if options.dry_run:
                planned = cost.plan_one(config, bar=progress_bar)
                text = render_plan.plan_json(planned.plan) if options.as_json else render_plan.plan_table(planned)
            else:
                result = run.train(config, resume=options.resume, bar=progress_bar, step_bar=training_bar())
                text = render.checkpoints_json(result.checkpoints) if options.as_json else render.result_text(result)
        except TrainingInterrupted as interruption:
            if is_local_main_process():
                sentence = f"{interruption}; the state is saved, and the same command with --resume continues"
                typer.echo(f"emtoolkit: {sentence}", err=True)
            raise typer.Exit(128 + interruption.signal_number) from None
    if is_local_main_process():
        show(text)


@command(
    commands,
    "emtoolkit plan sandbox --schedule every:25",
    "emtoolkit plan sweeps/schedules.yaml",
    "emtoolkit plan sweeps/seeds.yaml --json",
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
    count: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Largest number of runs of a sweep.", rich_help_panel="Run and output"),
    ] = None,
) -> None:
    """Print the cost of a run or of a sweep: steps, checkpoints, disk, memory, answers, judge calls."""
    from emtoolkit.sweeps.plan import plan_sweep
    from emtoolkit.sweeps.search import is_sweep

    path = Path(options.config)
    if sweep := is_sweep(path):
        # Of the options of a run, a sweep file takes the seed and the output format.
        if set_by_sweep := [flag for flag in options.flags_given() if flag not in ("--seed", "--json")]:
            raise UserError(
                f"{set_by_sweep[0]}: the sweep file {path} sets the options of its runs; remove the flag "
                "(a sweep file takes --count, --seed and --json)"
            )
        configs = plan_sweep(path, count=count, seed=options.seed or 0).configs()
    elif count is not None:
        raise UserError(f"--count: {count}: {path} is a config, which is one run; remove the flag")
    else:
        config = options.to_config()
    with only_results_on_stdout():
        from emtoolkit.cli import render_plan
        from emtoolkit.training import cost

        runs = cost.plan_several(configs, bar=progress_bar) if sweep else [cost.plan_one(config, bar=progress_bar)]
        total = cost.totals(runs)
    if options.as_json:
        show(render_plan.runs_json(runs, total))
    else:
        show(render_plan.runs_table(runs, total) if sweep else render_plan.plan_table(runs[0]))
