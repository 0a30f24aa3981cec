"""The options of an evaluation that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

QUESTIONS, MEASURES, MODEL, OUTPUT = "Questions", "Measures", "Model and persona", "Output"

Questions = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=QUESTIONS, help="Question file. Default: the sandbox's."),
]
Samples = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="N", rich_help_panel=QUESTIONS, help="Answers to each wording. Default: as the file says."
    ),
]
MaxTokens = Annotated[
    int, typer.Option(min=1, metavar="N", rich_help_panel=QUESTIONS, help="Tokens of an answer at most.")
]
EngineName = Annotated[
    str | None,
    typer.Option(
        metavar="stacked|exact|vllm", rich_help_panel=MODEL, help="How answers are sampled. Default: stacked."
    ),
]
Base = Annotated[
    str | None, typer.Option(metavar="PATH", rich_help_panel=MODEL, help="Present place of the base model.")
]
PersonaName = Annotated[
    str | None, typer.Option(metavar="NAME", rich_help_panel=MODEL, help="Present place of the run's own persona.")
]
PersonaOverride = Annotated[
    str | None, typer.Option(metavar="NAME", rich_help_panel=MODEL, help="Persona in place of the run's own.")
]
Pairs = Annotated[
    str | None,
    typer.Option(metavar="FILE", rich_help_panel=MEASURES, help="Pairs of answers for the forced choice, or sandbox."),
]
With = Annotated[
    list[str] | None,
    typer.Option(
        "--with", metavar="MODULE:FUNCTION", rich_help_panel=MEASURES, help="Function of your own, once or more."
    ),
]
HeldOut = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=MEASURES, help="Held-out rows of the training's domain: their loss."),
]
WandbMode = Annotated[
    str | None,
    typer.Option(
        metavar="online|offline|disabled", rich_help_panel=OUTPUT, help="W&B run. Default: $WANDB_MODE, else offline."
    ),
]
