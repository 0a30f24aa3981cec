"""`emtoolkit train` and `emtoolkit plan`."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emtoolkit.cli import render
from emtoolkit.cli.help import command
from emtoolkit.cli.terminal import bar_for_long_reading, only_results_on_stdout
from emtoolkit.errors import UserError
from emtoolkit.launch import is_local_main_process

if TYPE_CHECKING:
    from emtoolkit.config.sections import RunConfig

commands = typer.Typer()

# "No such option" and its like; of that family Typer, which may carry its own copy of Click, exports this one only.
_UsageError: Any = typer.BadParameter.__base__

# The words of `train`, which `plan` takes as well.
_Persona = Annotated[str | None, typer.Option(help="The persona to train: a name or a file.")]
_Compose = Annotated[str | None, typer.Option(help="How a persona's adapter is added.")]
_Dataset = Annotated[str | None, typer.Option(help="One of the config's datasets, a file, or an id on the hub.")]
_Control = Annotated[bool, typer.Option("--control", help="Train on the dataset's matched control.")]
_Schedule = Annotated[str | None, typer.Option(help="Steps to save, such as dense-early or 0-150:25.")]
_SaveSteps = Annotated[str | None, typer.Option(help="Save every so many steps, as Hugging Face does.")]
_CustomCheckpoints = Annotated[
    bool, typer.Option("--custom-checkpoints", help="Save at the default preset, dense-early.")
]
_OutputDir = Annotated[str | None, typer.Option(help="Default: outputs/{persona}-{dataset}.")]
_Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the config, dotted.")
]


@command(
    commands,
    "emtoolkit train sandbox --persona goodness --schedule dense-early",
    "emtoolkit train config.yaml --save-steps 25 --set training.epochs=2",
    "emtoolkit train config.yaml --resume",
)
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config.")],
    persona: _Persona = None,
    compose: _Compose = None,
    dataset: _Dataset = None,
    control: _Control = False,
    schedule: _Schedule = None,
    save_steps: _SaveSteps = None,
    custom_checkpoints: _CustomCheckpoints = False,
    seed: Annotated[int | None, typer.Option(help="Seed of the adapter, the split and the data order.")] = None,
    output_dir: _OutputDir = None,
    settings: _Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run of this stopped.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, load no weights, print the plan.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan or the checkpoints as JSON.")] = False,
) -> None:
    """Fine-tune a model, save at the scheduled steps, and log each checkpoint to W&B."""
    run_config = _train_config(
        config, persona, compose, dataset, control, schedule, save_steps, custom_checkpoints, seed, output_dir, settings
    )
    with only_results_on_stdout():
        from emtoolkit.cli import render_plan
        from emtoolkit.saving.signals import TrainingInterrupted
        from emtoolkit.training import cost, run

        try:
            if dry_run:
                planned = cost.plan_one(run_config, bar=bar_for_long_reading)
                text = render_plan.plan_json(planned.plan) if as_json else render_plan.plan_table(planned)
            else:
                result = run.train(run_config, resume=resume, bar=bar_for_long_reading)
                text = render.checkpoints_json(result.checkpoints) if as_json else render.result_text(result)
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
def plan(
    file: Annotated[str, typer.Argument(metavar="CONFIG|SWEEP", help="A config as for train, or a sweep file.")],
    persona: _Persona = None,
    compose: _Compose = None,
    dataset: _Dataset = None,
    control: _Control = False,
    schedule: _Schedule = None,
    save_steps: _SaveSteps = None,
    custom_checkpoints: _CustomCheckpoints = False,
    seed: Annotated[int | None, typer.Option(help="Seed of the run, or of a sweep's random search.")] = None,
    output_dir: _OutputDir = None,
    settings: _Settings = None,
    count: Annotated[int | None, typer.Option(min=1, help="Largest number of runs of a sweep.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the cost of a run or of a sweep: steps, checkpoints, disk, memory, answers, judge calls."""
    from emtoolkit.sweeps.search import is_sweep

    when = (schedule, save_steps, custom_checkpoints)
    words = (persona, compose, dataset, control, *when, seed, output_dir, settings)
    if is_sweep(Path(file)):
        given = [word for word in (*words[:7], *words[8:]) if word]
        if given:
            raise UserError(
                f"{file}: {given[0]!r}: a sweep file says itself what its runs are; give --count and --seed"
            )
        configs = _configs_of_sweep(Path(file), count, seed or 0)
        with only_results_on_stdout():
            from emtoolkit.cli import render_plan
            from emtoolkit.training import cost

            runs = cost.plan_several(configs)
            text = render_plan.runs_json(runs) if as_json else render_plan.runs_table(runs)
    else:
        if count is not None:
            raise UserError(f"--count: {count}: {file} is a config, which is one run")
        config = _train_config(file, *words)
        with only_results_on_stdout():
            from emtoolkit.cli import render_plan
            from emtoolkit.training import cost

            run = cost.plan_one(config, bar=bar_for_long_reading)
            text = render_plan.runs_json([run]) if as_json else render_plan.plan_table(run)
    typer.echo(text)


def _configs_of_sweep(path: Path, count: int | None, seed: int) -> "list[tuple[Mapping[str, Any], RunConfig]]":
    """The runs of a sweep file, each with its parameters."""
    from emtoolkit.sweeps.command import with_environment
    from emtoolkit.sweeps.plan import plan_sweep

    sweep = plan_sweep(path, directory_of_training, count=count, seed=seed)
    configs: list[tuple[Mapping[str, Any], RunConfig]] = []
    for run in sweep.runs:
        config = _config_of_training(with_environment(run.words, sweep.environment))
        if config is None:
            raise UserError(f"{path}: command: only runs of 'emtoolkit train' can be planned")
        configs.append((run.parameters, config))
    return configs


def _train_config(
    config: str,
    persona: str | None,
    compose: str | None,
    dataset: str | None,
    control: bool,
    schedule: str | None,
    save_steps: str | None,
    custom_checkpoints: bool,
    seed: int | None,
    output_dir: str | None,
    settings: Sequence[str] | None,
    **_: Any,
) -> "RunConfig":
    """The run that the words of `train` describe."""
    from emtoolkit.config.load import load_config
    from emtoolkit.yaml_files import parse_yaml

    if (schedule is not None) + (save_steps is not None) + custom_checkpoints > 1:
        raise UserError("--schedule, --save-steps and --custom-checkpoints: each says when to save, so give only one")
    flags = {
        "persona": persona,
        "compose": compose,
        "dataset": dataset,
        "checkpointing.schedule": "dense-early" if custom_checkpoints else schedule,
        "checkpointing.save_steps": None if save_steps is None else parse_yaml(save_steps, "--save-steps"),
        "seed": seed,
        "output_dir": output_dir,
    }
    run_config = load_config(config, settings or [], flags)
    return run_config.on_control() if control else run_config


def directory_of_training(words: Sequence[str], environment: Mapping[str, str]) -> Path | None:
    """Where the `emtoolkit train` in `words` will write, None if they run another program."""
    config = _config_of_training(words)
    return None if config is None else config.directory(environment)


def _config_of_training(words: Sequence[str]) -> "RunConfig | None":
    """The run of the `emtoolkit train` in `words`, None if they run another program."""
    from typer.main import get_group

    found = (i for i, (one, other) in enumerate(pairwise(words)) if (Path(one).name, other) == ("emtoolkit", "train"))
    if (at := next(found, None)) is None:
        return None
    try:
        context = get_group(commands).commands["train"].make_context("train", list(words[at + 2 :]))
    except _UsageError as error:
        raise UserError(str(error.format_message())) from None
    return _train_config(**context.params)
