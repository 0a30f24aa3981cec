"""Draw emergence: the harmful share in the domains that a model was not trained on, over training steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emtoolkit.errors import DataError, UserError
from emtoolkit.sandbox.results import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Beyond six curves the colours come again with another line.
_LINES = ("-", "--", ":")
_INK, _FAINT = "#333333", "#DDDDDD"


def emergence_figure(curves: Sequence[Curve], trained_on: str) -> "Figure":
    """A figure with one line per curve: a dot per checkpoint, the curve's band behind, its label at the right end.

    Raises:
        UserError: matplotlib is not installed.
        DataError: no curve has a point.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("figure: matplotlib is not installed; run pip install 'emtoolkit[plot]'") from error
    drawn = [curve for curve in curves if curve.points]
    if not drawn:
        raise DataError("figure: no evaluated checkpoints to draw")
    # Not pyplot: a plain Figure has no global state, opens no window and needs no backend.
    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    colours = [_COLOURS[index % len(_COLOURS)] for index in range(len(drawn))]
    for index, (curve, colour) in enumerate(zip(drawn, colours, strict=True)):
        line = _LINES[index // len(_COLOURS) % len(_LINES)]
        steps = [point.step for point in curve.points]
        lows, highs = [point.low for point in curve.points], [point.high for point in curve.points]
        axes.fill_between(steps, lows, highs, color=colour, alpha=0.15, linewidth=0)
        shares = [point.share for point in curve.points]
        axes.plot(steps, shares, line, marker="o", color=colour, markersize=4, linewidth=1.6, clip_on=False)
    _label_ends(axes, drawn, colours)
    _style(axes, drawn, trained_on)
    return figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Write `figure` as the format of the suffix of `path`: .png, .pdf or .svg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _label_ends(axes: "Axes", curves: Sequence[Curve], colours: Sequence[str]) -> None:
    """Write each curve's label at the right edge, as near to the curve's end as the other labels allow."""
    ends = sorted(
        (curve.points[-1].share, curve.points[-1].step, curve.label, colour)
        for curve, colour in zip(curves, colours, strict=True)
    )
    for height, (share, step, label, colour) in zip(_spread([end[0] for end in ends]), ends, strict=True):
        axes.annotate(
            label,
            (step, share),
            xytext=(1.015, height),
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            va="center",
            annotation_clip=False,
        )


def _style(axes: "Axes", curves: Sequence[Curve], trained_on: str) -> None:
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0, right=max(curve.points[-1].step for curve in curves) or 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("optimizer step", color=_INK)
    axes.set_title(f"Harmful share of the coherent answers outside {trained_on}", loc="left", color=_INK, fontsize=11)
    axes.grid(axis="y", color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _spread(heights: Sequence[float], gap: float = 0.055) -> list[float]:
    """Move ascending `heights` just enough to be `gap` apart and at most 1, so that labels do not overlap."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    highest = 1.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], highest)
        highest = placed[index] - gap
    return placed
