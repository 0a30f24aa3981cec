"""`emtoolkit train` and `emtoolkit plan`."""

from pathlib import Path
from typing import Annotated

import typer

from emtoolkit.cli import render
from emtoolkit.cli.help import command
from emtoolkit.cli.terminal import bar_for_long_reading, only_results_on_stdout
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
        from emtoolkit.cli import render_plan
        from emtoolkit.saving.signals import TrainingInterrupted
        from emtoolkit.training import cost, run

        try:
            if options.dry_run:
                planned = cost.plan_one(config, bar=bar_for_long_reading)
                text = render_plan.plan_json(planned.plan) if options.as_json else render_plan.plan_table(planned)
            else:
                result = run.train(config, resume=options.resume, bar=bar_for_long_reading)
                text = render.checkpoints_json(result.checkpoints) if options.as_json else render.result_text(result)
        except TrainingInterrupted as interruption:
            if is_local_main_process():
                sentence = f"{interruption}; it is saved, and the same command with --resume goes on"
                typer.echo(f"emtoolkit: {sentence}", err=True)
            raise typer.Exit(128 + interruption.signal_number) from None
    if is_local_main_process():
        typer.echo(text)


@command(
    commands,
    "emtoolkit plan sandbox --schedule every:25",
    "emtoolkit plan sweeps/schedules.yaml",
    "emtoolkit plan sweeps/seeds.yaml --json",
)
@takes_train_options(
    without=("resume", "dry_run"),
    config=typer.Argument(metavar="CONFIG|SWEEP", help="A config as for train, or a sweep file."),
    seed=typer.Option(help="Seed of the run, or of a sweep's random search."),
)
def plan(
    options: TrainOptions,
    count: Annotated[int | None, typer.Option(min=1, help="Largest number of runs of a sweep.")] = None,
) -> None:
    """Print the cost of a run or of a sweep: steps, checkpoints, disk, memory, answers, judge calls."""
    from emtoolkit.sweeps.plan import plan_sweep
    from emtoolkit.sweeps.search import is_sweep

    path = Path(options.config)
    if is_sweep(path):
        # Of the options of a run, a sweep file takes the seed and the output format.
        if set_by_sweep := [flag for flag in options.flags_given() if flag not in ("--seed", "--json")]:
            raise UserError(
                f"{set_by_sweep[0]}: a sweep file says itself what its runs are; remove it "
                f"({path} takes --count, --seed and --json)"
            )
        configs = plan_sweep(path, count=count, seed=options.seed or 0).configs()
        with only_results_on_stdout():
            from emtoolkit.cli import render_plan
            from emtoolkit.training import cost

            runs = cost.plan_several(configs, bar=bar_for_long_reading)
            text = render_plan.runs_json(runs) if options.as_json else render_plan.runs_table(runs)
    else:
        if count is not None:
            raise UserError(f"--count: {count}: {path} is a config, which is one run; remove it")
        config = options.to_config()
        with only_results_on_stdout():
            from emtoolkit.cli import render_plan
            from emtoolkit.training import cost

            run = cost.plan_one(config, bar=bar_for_long_reading)
            text = render_plan.runs_json([run]) if options.as_json else render_plan.plan_table(run)
    typer.echo(text)
