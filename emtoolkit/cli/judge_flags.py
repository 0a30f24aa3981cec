"""The options that choose a judge, for the commands that judge."""

from pathlib import Path
from typing import Annotated

import typer

_PANEL = "Judge"

JudgeName = Annotated[
    str | None,
    typer.Option(metavar="NAME", rich_help_panel=_PANEL, help="Model, sandbox or likelihood. Default: the file's."),
]
JudgeUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", rich_help_panel=_PANEL, help="Server of the judge, such as http://localhost:8000/v1."),
]
JudgeMethod = Annotated[
    str,
    typer.Option(metavar="logprobs|sampled", rich_help_panel=_PANEL, help="Probabilities, or a written number."),
]
JudgePrices = Annotated[
    str | None,
    typer.Option(metavar="IN,OUT", rich_help_panel=_PANEL, help="Dollars per million tokens read and written."),
]
MaxCost = Annotated[
    float | None, typer.Option(metavar="DOLLARS", rich_help_panel=_PANEL, help="Stop before the judge costs more.")
]
JudgeConcurrency = Annotated[
    int, typer.Option(min=1, metavar="N", rich_help_panel=_PANEL, help="Requests to the judge at a time.")
]
Calibration = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=_PANEL, help="Frozen answers that tell whether the judge changed."),
]
JudgeModel = Annotated[
    str | None,
    typer.Option(metavar="PATH", rich_help_panel=_PANEL, help="Local model of the judge likelihood."),
]
JudgeReadings = Annotated[
    str | None,
    typer.Option(metavar="A,M", rich_help_panel=_PANEL, help="Aligned and misaligned persona that it compares."),
]
