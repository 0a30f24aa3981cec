"""The options of `emtoolkit evaluate` about activations and directions, and their values."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emtoolkit.errors import UserError

if TYPE_CHECKING:
    from emtoolkit.evaluation.measures import Measure
    from emtoolkit.evaluation.texts import TextOptions

_PANEL = "Activations"

Extract = Annotated[
    bool, typer.Option("--extract-activations", rich_help_panel=_PANEL, help="Write activations of every layer, too.")
]
Answers = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=_PANEL, help="Answers to read instead of generated ones."),
]
ActivationQuestions = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", rich_help_panel=_PANEL, help="Ids of the questions to read. Default: all."),
]
DirectionFile = Annotated[
    Path | None,
    typer.Option("--direction", metavar="FILE", rich_help_panel=_PANEL, help="Direction to project activations on."),
]
Layer = Annotated[
    int | None, typer.Option(metavar="N", rich_help_panel=_PANEL, help="Layer of the projection; 0 is the embeddings.")
]


def text_options(
    answers: Path | None, patterns: Sequence[str] | None, *, extract: bool, projects: bool, samples: int | None
) -> "TextOptions":
    """The texts whose activations are read.

    Raises:
        UserError: the file cannot be read, or an option has no meaning.
    """
    from emtoolkit.evaluation.texts import TextOptions, matching, read_texts

    if answers is not None and not (extract or projects):
        raise UserError(f"--answers: nothing reads {answers}; give --extract-activations or --direction too")
    if patterns and not extract and answers is None:
        raise UserError("--activation-questions: nothing reads activations; give --extract-activations too")
    if extract and answers is None and samples == 0:
        raise UserError(
            "--extract-activations: the activations are those of sampled answers; sample at least one, or give "
            "--answers FILE"
        )
    given = () if answers is None else matching(read_texts(answers), tuple(patterns or ()))
    return TextOptions(given, tuple(patterns or ()))


def projections(direction: Path | None, layer: int | None, texts: "TextOptions") -> "tuple[Measure, ...]":
    """The projection that the options name, if they name one.

    Raises:
        UserError: the file is not one of a direction, or the layer is missing or not in it.
    """
    from emtoolkit.evaluation.directions import Projection, read_direction

    if direction is None:
        if layer is not None:
            raise UserError(f"--layer: {layer} is a layer of a direction; give --direction FILE too")
        return ()
    read = read_direction(direction)
    if layer is None:
        best = max(range(len(read.separation)), key=read.separation.__getitem__)
        raise UserError(
            f"--direction: give --layer, one of 0 to {read.layers}; {direction} separates its answers best in layer "
            f"{best}"
        )
    return (Projection(read, layer, texts.given, str(direction)),)
