"""`emtoolkit direction`: a persona direction from scored answers."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from emtoolkit.cli.help import TRAJECTORY_HELP, command
from emtoolkit.cli.output_formats import Json
from emtoolkit.cli.terminal import only_results_on_stdout, progress_bar, show
from emtoolkit.errors import UserError

commands = typer.Typer()

_Where = Annotated[list[str] | None, typer.Option(metavar="COL=VALUE", help="Only answers with this value.")]
_Step = Annotated[str, typer.Option(metavar="STEP", help="Checkpoint whose activations are read: a step, or final.")]
_Output = Annotated[Path, typer.Option(metavar="FILE", help="File to write.")]
_Base = Annotated[str | None, typer.Option(metavar="PATH", help="Present place of the base model.")]
_Span = Annotated[str, typer.Option(metavar="answer_mean|prompt_mean|prompt_last", help="Tokens that are averaged.")]


@command(
    commands,
    "emtoolkit direction outputs/goodness-medical answers.parquet",
    "emtoolkit direction outputs/goodness-medical answers.parquet --where step=397",
    "emtoolkit direction outputs/goodness-medical scored.csv --step 150",
)
def direction(
    trajectory: Annotated[
        str,
        typer.Argument(metavar="TRAJECTORY", help=TRAJECTORY_HELP),
    ],
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS", help="Scored answers: CSV, TSV, JSONL or Parquet.")],
    where: _Where = None,
    step: _Step = "final",
    span: _Span = "answer_mean",
    output: _Output = Path("direction.safetensors"),
    base: _Base = None,
    as_json: Json = False,
) -> None:
    """Write the direction from aligned to misaligned answers in the activations of a checkpoint, layer by layer.

    Misaligned are answers with an alignment below 50, aligned those from 50 on, both with a coherence from 50 on.
    """
    try:
        with only_results_on_stdout(), progress_bar() as progress:
            # Imported here, where messages of libraries for developers are not shown.
            from emtoolkit.cli import render_direction
            from emtoolkit.evaluation.activations import SPANS
            from emtoolkit.evaluation.directions import direction_of_step, write_direction
            from emtoolkit.evaluation.texts import read_texts
            from emtoolkit.models.loading import ModelLoader

            if span not in SPANS:
                raise UserError(f"--span: {span!r} is not one of {', '.join(SPANS)}")
            if not output.parent.is_dir():
                raise UserError(f"--output: {output.parent}: no such directory; make it first")
            texts = read_texts(answers, dict(map(_equation, where or ())))
            found = direction_of_step(trajectory, step, texts, ModelLoader(base=base), span=span, progress=progress)
            write_direction(output, found)
    except KeyboardInterrupt:
        typer.echo("emtoolkit: interrupted", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    text = render_direction.direction_json(found, output) if as_json else render_direction.direction_text(found, output)
    show(text)


def _equation(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not (column and equals):
        raise UserError(f"--where: {text!r} is not COLUMN=VALUE")
    return column, value
