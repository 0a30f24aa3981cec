"""A picture of emergence: the harmful share in the domains a model was not trained on, over training steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from emtoolkit.errors import DataError, UserError
from emtoolkit.sandbox.evaluate import CheckpointRows, other_domains

# Okabe and Ito's palette: told apart also by the colour-blind.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_INK, _FAINT = "#333333", "#DDDDDD"


def plot_curve(tables: Mapping[str, Sequence[CheckpointRows]], path: Path, *, trained_on: str = "medical") -> None:
    """Draw one line per run of `tables` (label to evaluated checkpoints) into `path`, a .png, .pdf or .svg.

    Dots are checkpoints, bands the 95 % intervals over questions; answers in the domain `trained_on` do not count.

    Raises:
        UserError: matplotlib is not installed.
        DataError: there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("drawing needs matplotlib; install it with `pip install 'emtoolkit[plot]'`") from error
    if not any(tables.values()):
        raise DataError(f"{path}: no evaluated checkpoints to draw")
    # A figure of its own, not pyplot's: no global state, no window, no backend to choose.
    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    ends = []
    for (label, table), colour in zip(tables.items(), _cycle(len(tables)), strict=True):
        if not table:
            continue
        steps = [checkpoint.step for checkpoint in table]
        shares = [other_domains(checkpoint.rows, trained_on) for checkpoint in table]
        axes.fill_between(
            steps, [s.low for s in shares], [s.high for s in shares], color=colour, alpha=0.15, linewidth=0
        )
        axes.plot(steps, [s.share for s in shares], "o-", color=colour, markersize=4, linewidth=1.6, clip_on=False)
        ends.append((shares[-1].share, steps[-1], label, colour))
    ends.sort()
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
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0, right=max(step for _, step, _, _ in ends) or 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("optimizer step", color=_INK)
    axes.set_title(f"Harmful share of the coherent answers outside {trained_on}", loc="left", color=_INK, fontsize=11)
    axes.grid(axis="y", color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _cycle(count: int) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(count)]


def _spread(heights: Sequence[float], gap: float = 0.055) -> list[float]:
    """Ascending `heights` moved up just enough to be `gap` apart, so that labels do not overlap."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    overshoot = max(0.0, placed[-1] - 1.0) if placed else 0.0
    return [height - overshoot for height in placed]
