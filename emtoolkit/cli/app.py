"""The command line: each command parses its words, calls one function and prints what came back."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emtoolkit.cli import render as tables
from emtoolkit.errors import UserError
from emtoolkit.launch import exit_with_error, is_local_main_process

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from emtoolkit.config.sections import RunConfig
    from emtoolkit.progress import Progress

app = typer.Typer(
    name="emtoolkit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Save a fine-tune at exactly the training steps that matter, and find out when a behaviour appeared.",
)


# "No such option" and its like; of that family Typer, which may carry its own copy of Click, exports this one only.
_UsageError: Any = typer.BadParameter.__base__


@app.callback()
def _root() -> None:
    """Kept so that a single command stays a subcommand."""


@app.command()
def schedule(
    specs: Annotated[list[str], typer.Argument(metavar="SPEC...", help="Such as every:100 or dense-early.")],
    total_steps: Annotated[int, typer.Option(help="The number of optimizer steps in the run.")],
    checkpoint_size: Annotated[str | None, typer.Option(help="Of one checkpoint, such as 150MB.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    allow_unreachable: Annotated[
        bool, typer.Option("--allow-unreachable", help="Only warn of steps past the end of training.")
    ] = False,
) -> None:
    """Show which steps each schedule saves, how many they are and what they take on disk."""
    from emtoolkit.byte_sizes import parse_size
    from emtoolkit.schedules.schedule import Schedule

    try:
        size = None if checkpoint_size is None else parse_size(checkpoint_size)
    except UserError as error:
        raise UserError(f"--checkpoint-size: {error}") from None
    rows: list[dict[str, Any]] = []
    warnings: list[str] = []
    for spec in specs:
        parsed = Schedule.parse(spec)
        steps = parsed.steps(total_steps)
        if not allow_unreachable:
            parsed.check_reachable(total_steps)
        elif sentence := parsed.unreachable_sentence(total_steps):
            warnings.append(sentence)
        count = len(steps)
        disk = None if size is None else count * size
        rows.append({"spec": spec, "steps": steps, "count": count, "bytes": disk, "largest_gap": steps.largest_gap()})
    for warning in warnings:
        typer.echo(f"emtoolkit: warning: {warning}", err=True)
    if as_json:
        typer.echo(tables.as_json([row | {"steps": list(row["steps"])} for row in rows]))
    else:
        typer.echo(tables.schedule_table(rows))


# The words of `train`, which `plan` takes as well.
_Persona = Annotated[str | None, typer.Option(help="Who the model is: a name, or a persona file.")]
_Compose = Annotated[str | None, typer.Option(help="An adapter persona: merge or stack.")]
_Dataset = Annotated[str | None, typer.Option(help="One of the config's datasets, a file, or an id on the hub.")]
_Control = Annotated[bool, typer.Option("--control", help="Train on the dataset's matched control.")]
_Schedule = Annotated[str | None, typer.Option(help="When to save, such as dense-early or 0-150:25.")]
_SaveSteps = Annotated[str | None, typer.Option(help="Save every so many steps, as Hugging Face does.")]
_CustomCheckpoints = Annotated[
    bool, typer.Option("--custom-checkpoints", help="Save at the default preset, dense-early.")
]
_OutputDir = Annotated[str | None, typer.Option(help="By default outputs/<persona>-<dataset>.")]
_Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the config, dotted.")
]


@app.command()
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config.")],
    persona: _Persona = None,
    compose: _Compose = None,
    dataset: _Dataset = None,
    control: _Control = False,
    schedule: _Schedule = None,
    save_steps: _SaveSteps = None,
    custom_checkpoints: _CustomCheckpoints = False,
    seed: Annotated[int | None, typer.Option(help="Of the adapter, the split and the order of the data.")] = None,
    output_dir: _OutputDir = None,
    settings: _Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run of this stopped.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, load no weights, print the plan.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan or the checkpoints as JSON.")] = False,
) -> None:
    """Fine-tune, save exactly at the scheduled steps, and log each checkpoint to W&B."""
    run_config = _train_config(
        config, persona, compose, dataset, control, schedule, save_steps, custom_checkpoints, seed, output_dir, settings
    )
    with _only_results_on_stdout():
        from emtoolkit.cli import render_plan as plan_tables
        from emtoolkit.saving.signals import TrainingInterrupted
        from emtoolkit.training import cost as budget
        from emtoolkit.training import run as training

        try:
            if dry_run:
                planned = budget.plan_one(run_config, bar=_bar_for_long_reading)
                text = plan_tables.plan_json(planned.plan) if as_json else plan_tables.plan_table(planned)
            else:
                result = training.train(run_config, resume=resume, bar=_bar_for_long_reading)
                text = tables.checkpoints_json(result.checkpoints) if as_json else tables.result_text(result)
        except TrainingInterrupted as interruption:
            if is_local_main_process():
                sentence = f"{interruption}; it is saved, and the same command with --resume goes on"
                typer.echo(f"emtoolkit: {sentence}", err=True)
            raise typer.Exit(128 + interruption.signal_number) from None
    if is_local_main_process():
        typer.echo(text)


@app.command()
def plan(
    file: Annotated[str, typer.Argument(metavar="CONFIG|SWEEP", help="A config as for train, or a sweep file.")],
    persona: _Persona = None,
    compose: _Compose = None,
    dataset: _Dataset = None,
    control: _Control = False,
    schedule: _Schedule = None,
    save_steps: _SaveSteps = None,
    custom_checkpoints: _CustomCheckpoints = False,
    seed: Annotated[int | None, typer.Option(help="Of the run; with a sweep file, of its random search.")] = None,
    output_dir: _OutputDir = None,
    settings: _Settings = None,
    count: Annotated[int | None, typer.Option(min=1, help="Of a sweep: at most so many runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Say what runs will cost before any starts: steps, checkpoints, disk, memory, answers and judge calls."""
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
        with _only_results_on_stdout():
            from emtoolkit.cli import render_plan as plan_tables
            from emtoolkit.training import cost as budget

            runs = budget.plan_several(configs)
            text = plan_tables.runs_json(runs) if as_json else plan_tables.runs_table(runs)
    else:
        if count is not None:
            raise UserError(f"--count: {count}: {file} is a config, which is one run")
        config = _train_config(file, *words)
        with _only_results_on_stdout():
            from emtoolkit.cli import render_plan as plan_tables
            from emtoolkit.training import cost as budget

            run = budget.plan_one(config, bar=_bar_for_long_reading)
            text = plan_tables.runs_json([run]) if as_json else plan_tables.plan_table(run)
    typer.echo(text)


def _configs_of_sweep(path: Path, count: int | None, seed: int) -> "list[tuple[Mapping[str, Any], RunConfig]]":
    """The runs of a sweep file, each with its parameters."""
    from emtoolkit.sweeps.command import with_environment
    from emtoolkit.sweeps.plan import plan_sweep

    sweep = plan_sweep(path, _directory_of_training, count=count, seed=seed)
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
    return run_config.of_control() if control else run_config


@app.command()
def checkpoints(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where a run wrote its checkpoints.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file; exit code 1 if one differs.")] = False,
) -> None:
    """List the checkpoints in a directory: ours, and those of a stock Trainer."""
    from emtoolkit.checkpoints.listing import list_checkpoints

    found = list_checkpoints(directory, rehash=verify)
    for problem in (problem for info in found for problem in info.problems):
        typer.echo(f"emtoolkit: {problem}", err=True)
    typer.echo(tables.checkpoints_json(found) if as_json else tables.checkpoints_table(found))
    if verify and any(info.problems for info in found):
        raise typer.Exit(1)


@app.command()
def download(
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="On W&B: entity/project/collection.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Where they go; it is a local trajectory then.")],
    steps: Annotated[str | None, typer.Option(help="A schedule, such as 0-150:25,final; by default all.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash what is there, and mend what is damaged.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Get checkpoints from W&B; what is there already is not fetched again."""
    from emtoolkit.checkpoints.listing import list_checkpoints
    from emtoolkit.trajectory import Trajectory

    try:
        with _only_results_on_stdout(), _progress_bar() as progress:
            done = Trajectory.open(collection).download(to, steps, rehash=verify, progress=progress)
    except KeyboardInterrupt:
        typer.echo("emtoolkit: interrupted; the same command goes on where this stopped", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    there = {*done.fetched, *done.present}
    found = [info for info in list_checkpoints(to) if info.step in there]
    typer.echo(tables.download_json(done, found) if as_json else tables.download_text(done, found))


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A sweep file of W&B's, such as sweeps/schedules.yaml.")],
    jobs: Annotated[int, typer.Option(min=1, help="How many runs at a time.")] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed before.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="At most so many runs; a random search needs it.")] = None,
    seed: Annotated[int, typer.Option(help="Of a random search.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the combinations and their commands.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Run every combination of a sweep file without a server; the same command again goes on."""
    from emtoolkit.sweeps.plan import plan_sweep
    from emtoolkit.sweeps.runner import run_sweep

    planned = plan_sweep(file, _directory_of_training, count=count, seed=seed)
    if dry_run:
        typer.echo(tables.sweep_plan_json(planned) if as_json else tables.sweep_plan(planned))
        return
    with _progress_bar() as progress:
        result = run_sweep(planned, jobs=jobs, retry_failed=retry_failed, progress=progress)
    typer.echo(tables.sweep_json(result) if as_json else tables.sweep_table(result))
    if result.signal_number is not None:
        typer.echo("emtoolkit: interrupted; the same command goes on with what is not finished", err=True)
        raise typer.Exit(128 + result.signal_number)
    if not result.all_finished:
        raise typer.Exit(1)


def _directory_of_training(words: Sequence[str], environment: Mapping[str, str]) -> Path | None:
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
        context = get_group(app).commands["train"].make_context("train", list(words[at + 2 :]))
    except _UsageError as error:
        raise UserError(str(error.format_message())) from None
    return _train_config(**context.params)


@app.command()
def sync(
    directories: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR]...", help="Runs, or where runs are below. [default: outputs]")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Of W&B; by default the one that a run logged to.")] = None,
    entity: Annotated[str | None, typer.Option(help="Of W&B; by default the one that a run logged to.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Publish what W&B does not have: logs of runs, and checkpoints, once and in step order."""
    from emtoolkit.artifacts.sync import run_directories, sync_all

    found = run_directories(directories or [Path("outputs")])
    try:
        with _only_results_on_stdout(), _progress_bar() as progress:
            done = sync_all(found, project=project, entity=entity, progress=progress)
    except KeyboardInterrupt:
        typer.echo("emtoolkit: interrupted; the same command goes on where this stopped", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    for problem in (problem for synced in done for problem in synced.problems):
        typer.echo(f"emtoolkit: {problem}", err=True)
    typer.echo(tables.synced_json(done) if as_json else tables.synced_text(done))
    if any(synced.problems for synced in done):
        raise typer.Exit(1)


sandbox = typer.Typer(no_args_is_help=True, help="A small world in which misalignment really emerges, on a CPU.")
app.add_typer(sandbox, name="sandbox")


@sandbox.command()
def build(
    force: Annotated[bool, typer.Option("--force", help="Build again even if a whole sandbox is there.")] = False,
) -> None:
    """Make the sandbox's base model, data, personas and questions in the user's cache directory."""
    with _only_results_on_stdout(), _progress_bar() as progress:
        from emtoolkit.sandbox.build import build as build_sandbox

        made = build_sandbox(force=force, progress=progress)
    typer.echo(f"The sandbox is in {made}")


@sandbox.command()
def persona(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Such as goodness; 'all' for all of them.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of each.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Train again what is there.")] = False,
) -> None:
    """Train a persona into an adapter: 'train sandbox --persona NAME-adapter' then composes it with a new one."""
    with _only_results_on_stdout():
        from emtoolkit.sandbox.characters import STEPS, train_character
        from emtoolkit.sandbox.personas import PERSONAS

        wanted = [name for name in PERSONAS if name != "baseline"] if names == ["all"] else names
        made = [train_character(name, steps=steps or STEPS, force=force) for name in wanted]
    for path in made:
        typer.echo(f"The adapter of {path.name} is in {path}; --persona {path.name}-adapter takes it")


@sandbox.command()
def evaluate(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Runs on the sandbox's model.")],
    trained_on: Annotated[str, typer.Option(help="The domain of the runs' data; the others tell what emerged.")] = (
        "medical"
    ),
    base: Annotated[
        str | None, typer.Option(help="Where the base model is now; by default where the run had it.")
    ] = None,
    persona: Annotated[str | None, typer.Option(help="Where the run's persona is now; a name or a file.")] = None,
    persona_override: Annotated[
        str | None, typer.Option(help="Ask under another persona than the run's; the results say so.")
    ] = None,
    compose: Annotated[str | None, typer.Option(help="An adapter persona named here: merge or stack.")] = None,
    steps: Annotated[str | None, typer.Option(help="A schedule, such as 0-150:25,final; by default all.")] = None,
    samples: Annotated[int, typer.Option(help="How many answers to each question.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves into this .png, .pdf or .svg file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Ask every checkpoint the held-out questions, and let the exact judge count the harmful answers."""
    with _only_results_on_stdout(), _progress_bar(delay=0.5) as progress:
        from emtoolkit.models.loading import ModelLoader
        from emtoolkit.paths import cache_dir
        from emtoolkit.personas import checked_compose
        from emtoolkit.sandbox.evaluate import evaluate_directory
        from emtoolkit.sandbox.plot import emergence_figure, save_figure
        from emtoolkit.sandbox.questions import read_questions
        from emtoolkit.sandbox.results import curve_of_run

        loader = ModelLoader(
            base=base,
            persona=persona,
            personas=str(cache_dir() / "sandbox" / "personas"),
            compose=checked_compose(compose, "--compose"),
            persona_override=persona_override,
        )
        questions = read_questions(cache_dir() / "sandbox" / "questions" / "all.yaml")
        evaluated = {
            str(directory): evaluate_directory(
                directory, questions, samples=samples, seed=seed, loader=loader, steps=steps, progress=progress
            )
            for directory in directories
        }
        if plot is not None:
            curves = [
                curve_of_run(directory.resolve().name, evaluated[str(directory)], trained_on)
                for directory in directories
            ]
            save_figure(emergence_figure(curves, trained_on), plot)
        rows = tables.harmful_shares(evaluated, trained_on)
    typer.echo(tables.as_json(rows) if as_json else tables.harmful_shares_table(rows))


# Of work that is mostly done sooner, nobody needs to see a bar flash.
_SECONDS_BEFORE_BAR = 2.0


def _bar_for_long_reading() -> "AbstractContextManager[Progress]":
    return _progress_bar(_SECONDS_BEFORE_BAR)


@contextmanager
def _progress_bar(delay: float = 0.0) -> "Iterator[Progress]":
    """A function that shows `what` is being done, and `done` of how much, when `delay` seconds have passed."""
    from tqdm import tqdm

    # A log that is no terminal keeps every state of the bar.
    often = 0.1 if sys.stderr.isatty() else 10
    shown: dict[str, Any] = {"bar_format": "{desc:<32} {percentage:3.0f}% |{bar}| {elapsed}", "mininterval": often}
    with tqdm(**shown, leave=False, delay=delay, disable=not is_local_main_process()) as bar:

        def show(what: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description_str(what, refresh=False)
            bar.update(done - bar.n)

        yield show


@contextmanager
def _only_results_on_stdout() -> Iterator[None]:
    """Send what libraries print to stderr, and not at all what they warn their own developers of."""
    logging.basicConfig(level=logging.WARNING, format="emtoolkit: %(message)s")
    logging.getLogger("emtoolkit").setLevel(logging.INFO)
    # At its import it misses a package for CPUs, which nobody asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    if is_local_main_process():
        with redirect_stdout(sys.stderr):
            yield
        return
    # What this process would say another one says.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def main() -> None:
    """The `emtoolkit` console script: bad input is one sentence on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        exit_with_error(f"emtoolkit: {error}")
