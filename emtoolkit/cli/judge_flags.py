"""The options that choose a judge, for the commands that judge."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from emtoolkit.cli.judge_options import JudgeOptions

_PANEL = "Judge"

_JudgeName = Annotated[
    str | None,
    typer.Option(metavar="NAME", rich_help_panel=_PANEL, help="Model, sandbox or likelihood. Default: the file's."),
]
_JudgeUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", rich_help_panel=_PANEL, help="Server of the judge, such as http://localhost:8000/v1."),
]
_JudgeMethod = Annotated[
    str,
    typer.Option(metavar="logprobs|sampled", rich_help_panel=_PANEL, help="Probabilities, or a written number."),
]
_JudgePrices = Annotated[
    str | None,
    typer.Option(metavar="IN,OUT", rich_help_panel=_PANEL, help="Dollars per million tokens read and written."),
]
_MaxCost = Annotated[
    float | None, typer.Option(metavar="DOLLARS", rich_help_panel=_PANEL, help="Stop before the judge costs more.")
]
_JudgeConcurrency = Annotated[
    int, typer.Option(min=1, metavar="N", rich_help_panel=_PANEL, help="Requests to the judge at a time.")
]
Calibration = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=_PANEL, help="Frozen answers that tell whether the judge changed."),
]
_JudgeModel = Annotated[
    str | None,
    typer.Option(metavar="PATH", rich_help_panel=_PANEL, help="Local model of the judge likelihood."),
]
_JudgeReadings = Annotated[
    str | None,
    typer.Option(metavar="A,M", rich_help_panel=_PANEL, help="Aligned and misaligned persona that it compares."),
]


@dataclass(frozen=True, slots=True)
class JudgeFlags:
    """The options of the judge on the command line."""

    judge: _JudgeName = None
    judge_url: _JudgeUrl = None
    judge_method: _JudgeMethod = "logprobs"
    judge_prices: _JudgePrices = None
    max_cost: _MaxCost = None
    judge_concurrency: _JudgeConcurrency = 8
    judge_model: _JudgeModel = None
    judge_readings: _JudgeReadings = None

    def options(self, base: str | None = None) -> "JudgeOptions":
        """The options as a value; the likelihood judge reads with `base` where no model is named."""
        from emtoolkit.cli.judge_options import JudgeOptions

        return JudgeOptions(
            self.judge,
            self.judge_url,
            self.judge_method,
            self.judge_prices,
            self.max_cost,
            self.judge_concurrency,
            self.judge_model or base,
            self.judge_readings,
        )
