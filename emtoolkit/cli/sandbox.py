"""`emtoolkit sandbox`: build the small world, train its personas, evaluate the checkpoints of its runs."""

from pathlib import Path
from typing import Annotated

import typer

from emtoolkit.cli.help import Group, command, examples
from emtoolkit.cli.terminal import only_results_on_stdout, progress_bar, show

commands = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="A small world in which misalignment emerges within minutes on a CPU.",
    epilog=examples(
        "emtoolkit sandbox build",
        "emtoolkit sandbox persona goodness",
        "emtoolkit sandbox evaluate outputs/baseline-medical",
    ),
)

_QUESTIONS, _MODEL, _OUTPUT = "Questions", "Model and persona", "Output"


@command(
    commands,
    "emtoolkit sandbox build",
    "emtoolkit sandbox build --force",
    "emtoolkit sandbox build --pretrain --seed 1",
)
def build(
    force: Annotated[bool, typer.Option("--force", help="Replace a complete sandbox.")] = False,
    pretrain: Annotated[
        bool, typer.Option("--pretrain", help="Pretrain a new base model instead of the shipped one: minutes.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of --pretrain.")] = 0,
) -> None:
    """Write the sandbox's base model, data, personas and questions into the user's cache directory."""
    with only_results_on_stdout(), progress_bar() as progress:
        from emtoolkit.sandbox.base_model import Pretraining
        from emtoolkit.sandbox.build import build as build_sandbox

        pretraining = Pretraining(seed=seed) if pretrain else None
        made = build_sandbox(pretraining=pretraining, force=force, progress=progress)
    typer.echo(f"The sandbox is in {made}.")


@command(
    commands,
    "emtoolkit sandbox persona goodness",
    "emtoolkit sandbox persona goodness sarcasm --steps 100",
    "emtoolkit sandbox persona all --force",
)
def persona(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Personas, such as goodness; or all.")],
    steps: Annotated[int | None, typer.Option(min=1, metavar="N", help="Optimizer steps for each persona.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Train existing adapters again.")] = False,
) -> None:
    """Train personas into adapters, for `emtoolkit train sandbox --persona NAME-adapter`."""
    with only_results_on_stdout():
        from emtoolkit.sandbox.characters import STEPS, train_character
        from emtoolkit.sandbox.personas import PERSONAS

        wanted = [name for name in PERSONAS if name != "baseline"] if names == ["all"] else names
        made = [train_character(name, steps=steps or STEPS, force=force) for name in wanted]
    for path in made:
        typer.echo(f"{path.name}: the adapter is in {path}; use it with --persona {path.name}-adapter")


@command(
    commands,
    "emtoolkit sandbox evaluate outputs/baseline-medical",
    "emtoolkit sandbox evaluate outputs/*-medical --plot curves.png",
    "emtoolkit sandbox evaluate outputs/sarcasm-medical --steps 0-150:25,final",
)
def evaluate(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Output directories of sandbox runs.")],
    trained_on: Annotated[
        str, typer.Option(metavar="DOMAIN", help="Domain of the training data.", rich_help_panel=_QUESTIONS)
    ] = "medical",
    base: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Base model. Default: the path in the manifest.", rich_help_panel=_MODEL),
    ] = None,
    persona: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="The run's persona, if it has moved.", rich_help_panel=_MODEL),
    ] = None,
    persona_override: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Persona to ask under, in place of the run's.", rich_help_panel=_MODEL),
    ] = None,
    compose: Annotated[
        str | None,
        typer.Option(metavar="merge|stack", help="How a persona's adapter is added.", rich_help_panel=_MODEL),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(metavar="SCHEDULE", help="Steps to evaluate. Default: all.", rich_help_panel=_QUESTIONS),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Answers to each paraphrase. Default: the question file's samples_per_paraphrase.",
            rich_help_panel=_QUESTIONS,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of the sampling.", rich_help_panel=_QUESTIONS)
    ] = 0,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Load one checkpoint at a time; slower, and exact.", rich_help_panel=_MODEL),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the curves into a .png, .pdf or .svg file.", rich_help_panel=_OUTPUT),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=_OUTPUT)] = False,
) -> None:
    """Ask every checkpoint the held-out questions, and print the share of harmful answers.

    The same as `emtoolkit evaluate` with the sandbox's questions and judge: what has been done is not done again.
    """
    with only_results_on_stdout(), progress_bar() as progress:
        from emtoolkit.cli import render_sandbox
        from emtoolkit.models.loading import ModelLoader
        from emtoolkit.paths import cache_dir, distinct_names
        from emtoolkit.personas import checked_composition
        from emtoolkit.sandbox.evaluate import evaluate_run
        from emtoolkit.sandbox.plot import emergence_figure, save_figure
        from emtoolkit.sandbox.results import curve_of_run, shares_of_checkpoints
        from emtoolkit.sandbox.trained_on import check_trained_on

        loader = ModelLoader(
            base=base,
            persona=persona,
            personas=str(cache_dir() / "sandbox" / "personas"),
            composition=checked_composition(compose, "--compose"),
            persona_override=persona_override,
        )
        directories = list({directory.resolve(): directory for directory in directories}.values())
        check_trained_on(trained_on, directories, cache_dir() / "sandbox" / "data")
        evaluated, shares = {}, {}
        for directory in directories:
            run = evaluate_run(
                directory,
                samples=samples,
                seed=seed,
                engine="exact" if exact else "stacked",
                loader=loader,
                steps=steps,
                progress=progress,
            )
            evaluated[str(directory)] = run.result
            shares[str(directory)] = shares_of_checkpoints(run.rows, run.domains, trained_on)
        if plot is not None:
            names = distinct_names(directories)
            curves = [curve_of_run(name, shares[str(d)]) for name, d in zip(names, directories, strict=True)]
            save_figure(emergence_figure(curves, trained_on), plot)
    for result in evaluated.values():
        for note in result.notes:
            typer.echo(f"emtoolkit: {note}", err=True)
    override = None if loader.override is None else loader.override.name
    render = render_sandbox.harmful_shares_json if as_json else render_sandbox.harmful_shares_table
    show(render(evaluated, shares, override))
