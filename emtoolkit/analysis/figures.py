"""The figures of the report by matplotlib, for papers and notebooks.

figure_of(onset_charts([onsets(["outputs/goodness-medical"], Event())])[0])
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import bidirectional

from emtoolkit.analysis.chart import STYLES
from emtoolkit.analysis.compare import Comparisons
from emtoolkit.analysis.compare_figure import save_compare_figure
from emtoolkit.analysis.report import Report, charts
from emtoolkit.analysis.report_charts import Chart
from emtoolkit.analysis.schedule_costs import schedule_costs
from emtoolkit.errors import UserError
from emtoolkit.storage.atomic import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The colours, dashes and marks of the page, so that a curve looks the same in both.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5628f", "#8a7400", "#3a8fc2")
_DASHES = ("-", (0, (4, 2)), (0, (1, 2)), (0, (5, 2, 1, 2)), (0, (7, 3)), (0, (2, 1)))
_MARKS = ("o", "s", "^", "D", "x", "|")


def figure_of(chart: Chart, *, log_steps: bool = False) -> "Figure":
    """The figure of `chart`: a mark for each checkpoint, a gap where a value is NaN, bands where there are limits.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.ticker import PercentFormatter

        from emtoolkit.analysis.notebook_figure import NotebookFigure
    except ImportError as error:
        raise UserError("figure: matplotlib is not installed; run pip install 'emtoolkit[plot]'") from error
    # Not pyplot: a plain Figure has no global state, opens no window and needs no backend.
    figure = NotebookFigure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for span in chart.spans:
        axes.axvspan(span.first, span.last, color="#57606a", alpha=0.16, linewidth=0)
    for number, series in enumerate(chart.series):
        style = number % STYLES
        steps = [mark.step for mark in series.marks]
        lows, highs = [mark.low for mark in series.marks], [mark.high for mark in series.marks]
        axes.fill_between(steps, lows, highs, color=_COLOURS[style], alpha=0.15, linewidth=0)
        axes.plot(
            steps,
            [mark.value for mark in series.marks],
            color=_COLOURS[style],
            linestyle=_DASHES[style],
            marker=_MARKS[style],
            markersize=4,
            label=_plain(series.name),
        )
    if log_steps:
        # Linear up to step 1, so that step 0 has a place.
        axes.set_xscale("symlog", linthresh=1)
    if chart.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_xlabel("step")
    axes.set_title(_plain(chart.title), loc="left", fontsize=10, wrap=True)
    axes.grid(axis="y", color="#d0d7de", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if chart.series:
        figure.legend(loc="outside lower left", fontsize=8, frameon=False)
    return figure


def save_figures(charts: Sequence[Chart], directory: Path) -> list[Path]:
    """Write each chart into `directory` as NAME.png and NAME.svg, and return the paths.

    Raises:
        UserError: matplotlib is not installed, or the directory cannot be written.
    """
    from io import BytesIO

    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for chart in charts:
        figure = figure_of(chart)
        for form in ("png", "svg"):
            content = BytesIO()
            # Without a date the same values give the same file.
            figure.savefig(content, format=form, metadata={"Date": None} if form == "svg" else None)
            paths.append(directory / f"{chart.name}.{form}")
            write_file(paths[-1], content.getvalue())
    return paths


def save_report_figures(report: Report, directory: Path) -> None:
    """Write every figure of the report into `directory`, and the one of its schedules if they can be judged.

    Raises:
        UserError: matplotlib is not installed, or the directory cannot be written.
    """
    save_figures([chart for drawn in charts(report).values() for chart in drawn], directory)
    views = zip(*(each.views for each in report.comparisons), strict=True)
    if any(all(view.new_questions is not None for view in of_schedule) for of_schedule in views):
        found = Comparisons(report.event, report.comparisons, ())
        costs = schedule_costs(found)
        for form in ("png", "svg"):
            path = directory / f"schedules.{form}"
            save_compare_figure(found, costs, path)


def _plain(text: str) -> str:
    """`text` without the dollar signs that begin a formula, and without an underscore that hides a label.

    A name in a right-to-left script at the beginning would turn the whole line around.
    """
    turned = any(bidirectional(character) in ("R", "AL") for character in text)
    before = "\u200e" if turned else " " if text.startswith("_") else ""
    return f"{before}{text}".replace("$", r"\$")
