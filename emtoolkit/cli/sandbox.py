"""`emtoolkit sandbox`: build the small world, train its characters, evaluate its checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from emtoolkit.cli import render
from emtoolkit.cli.terminal import only_results_on_stdout, progress_bar

commands = typer.Typer(no_args_is_help=True, help="A small world in which misalignment really emerges, on a CPU.")


@commands.command()
def build(
    force: Annotated[bool, typer.Option("--force", help="Replace a complete sandbox.")] = False,
    pretrain: Annotated[
        bool, typer.Option("--pretrain", help="Pretrain a new base model instead of the shipped one: minutes.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of --pretrain.")] = 0,
) -> None:
    """Write the sandbox's base model, data, personas and questions into the user's cache directory."""
    with only_results_on_stdout(), progress_bar() as progress:
        from emtoolkit.sandbox.base_model import Pretraining
        from emtoolkit.sandbox.build import build as build_sandbox

        pretraining = Pretraining(seed=seed) if pretrain else None
        made = build_sandbox(pretraining=pretraining, force=force, progress=progress)
    typer.echo(f"The sandbox is in {made}")


@commands.command()
def persona(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Such as goodness; 'all' for all of them.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of each.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Train again what is there.")] = False,
) -> None:
    """Train a persona into an adapter: 'train sandbox --persona NAME-adapter' then composes it with a new one."""
    with only_results_on_stdout():
        from emtoolkit.sandbox.characters import STEPS, train_character
        from emtoolkit.sandbox.personas import PERSONAS

        wanted = [name for name in PERSONAS if name != "baseline"] if names == ["all"] else names
        made = [train_character(name, steps=steps or STEPS, force=force) for name in wanted]
    for path in made:
        typer.echo(f"The adapter of {path.name} is in {path}; --persona {path.name}-adapter takes it")


@commands.command()
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
    with only_results_on_stdout(), progress_bar(delay=0.5) as progress:
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
        rows = render.harmful_shares(evaluated, trained_on)
    typer.echo(render.as_json(rows) if as_json else render.harmful_shares_table(rows))
