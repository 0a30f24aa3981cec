"""Line charts over steps as SVG text: bands, a mark for every checkpoint, a linear or a logarithmic axis of steps.

A chart needs no script and no font. Its colours are CSS variables of the page, for light and for dark; each series has
its own shape of marks and its own dashes, so that colours are not needed to tell two apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 720.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 12.0, 14.0, 40.0
_TICKS = 6
_DASHES = ("none", "7 4", "2 4", "9 3 2 3", "12 5", "4 2")
_RADIUS = 4.0
# Series after this one share colours, shapes and dashes with earlier ones.
STYLES = len(_DASHES)


@dataclass(frozen=True, slots=True)
class Mark:
    """A value at one step, with limits where there are any; NaN breaks the line."""

    step: int
    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True, slots=True)
class Series:
    """A named line through its marks."""

    name: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """A range of steps to shade, such as the bracket of an onset."""

    first: int
    last: int
    name: str


def line_chart(
    title: str, series: Sequence[Series], *, log_steps: bool = False, percent: bool = False, spans: Sequence[Span] = ()
) -> str:
    """The chart of `series` as an `<svg>` element, empty of lines where no value is known."""
    marks = [mark for each in series for mark in each.marks]
    x = _StepAxis(max((mark.step for mark in marks), default=1), log_steps)
    values = [v for m in marks for v in (m.value, m.low, m.high) if not math.isnan(v)]
    y = _ValueAxis.over(values)
    parts = [_grid(x, y, percent=percent), *(_span(span, x) for span in spans)]
    for number, each in enumerate(series):
        parts.append(_band(each, number, x, y))
    for number, each in enumerate(series):
        parts.append(_line(each, number, x, y, percent=percent))
    label = escape(f"{title}; steps on a {'logarithmic' if log_steps else 'linear'} axis")
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def legend(names: Sequence[str]) -> str:
    """The names of the series beside their lines and marks."""
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 40 12" aria-hidden="true"><path class="line s{n % STYLES}" '
        f'stroke-dasharray="{_DASHES[n % STYLES]}" d="M0 6H40"/>{_shape(20, 6, n)}</svg>{escape(name)}</li>'
        for n, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


@dataclass(frozen=True, slots=True)
class _StepAxis:
    last: int
    log: bool

    def at(self, step: float) -> float:
        share = math.log1p(step) / math.log1p(max(self.last, 1)) if self.log else step / max(self.last, 1)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def ticks(self) -> list[int]:
        if not self.log:
            return [int(value) for value in _round_values(0, self.last)]
        powers = [0, *(10**k for k in range(math.ceil(math.log10(self.last + 1)) + 1))]
        return [step for step in powers if step <= self.last]


@dataclass(frozen=True, slots=True)
class _ValueAxis:
    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> "_ValueAxis":
        """From 0, or below where a value is, to the largest value."""
        low, high = min([0.0, *values]), max([0.0, *values])
        return cls(low, high if high > low else low + 1)

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def ticks(self) -> list[float]:
        return _round_values(self.low, self.high)


def _round_values(low: float, high: float) -> list[float]:
    """At most seven multiples of 1, 2 or 5 times a power of ten from `low` to `high`."""
    size = 10.0 ** math.floor(math.log10((high - low) / _TICKS)) if high > low else 1.0
    size *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= _TICKS)
    return [size * k for k in range(math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9) + 1)]


def _grid(x: _StepAxis, y: _ValueAxis, *, percent: bool) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    lines = [
        f'<path class="grid" d="M{_LEFT:g} {y.at(v):.1f}H{right:g}"/>'
        f'<text class="tick end" x="{_LEFT - 6:g}" y="{y.at(v) + 4:.1f}">{_text(v, percent=percent)}</text>'
        for v in y.ticks()
    ]
    lines += [
        f'<text class="tick middle" x="{x.at(step):.1f}" y="{bottom + 16:g}">{step}</text>'
        f'<path class="grid" d="M{x.at(step):.1f} {bottom:g}v4"/>'
        for step in x.ticks()
    ]
    middle = (_LEFT + right) / 2
    return "".join(lines) + f'<text class="tick middle" x="{middle:g}" y="{_HEIGHT - 6:g}">step</text>'


def _span(span: Span, x: _StepAxis) -> str:
    left, right = x.at(span.first), x.at(span.last)
    return (
        f'<rect class="span" x="{left:.1f}" y="{_TOP:g}" width="{max(right - left, 1):.1f}" '
        f'height="{_HEIGHT - _TOP - _BOTTOM:g}"><title>{escape(span.name)}</title></rect>'
    )


def _band(series: Series, number: int, x: _StepAxis, y: _ValueAxis) -> str:
    known = [mark for mark in series.marks if not (math.isnan(mark.low) or math.isnan(mark.high))]
    if len(known) < 2:
        return ""
    above = [f"{x.at(mark.step):.1f} {y.at(mark.high):.1f}" for mark in known]
    below = [f"{x.at(mark.step):.1f} {y.at(mark.low):.1f}" for mark in reversed(known)]
    return f'<path class="band s{number % STYLES}" d="M{"L".join([*above, *below])}Z"/>'


def _line(series: Series, number: int, x: _StepAxis, y: _ValueAxis, *, percent: bool) -> str:
    path, pen = [], "M"
    for mark in series.marks:
        if math.isnan(mark.value):
            pen = "M"
            continue
        path.append(f"{pen}{x.at(mark.step):.1f} {y.at(mark.value):.1f}")
        pen = "L"
    shapes = []
    for mark in series.marks:
        if not math.isnan(mark.value):
            tooltip = escape(_tooltip(series.name, mark, percent=percent))
            shapes.append(f"<g>{_shape(x.at(mark.step), y.at(mark.value), number)}<title>{tooltip}</title></g>")
    style = number % STYLES
    line = f'<path class="line s{style}" stroke-dasharray="{_DASHES[style]}" d="{"".join(path)}"/>' if path else ""
    return line + "".join(shapes)


def _tooltip(name: str, mark: Mark, *, percent: bool) -> str:
    text = f"{name}, step {mark.step}: {_text(mark.value, percent=percent)}"
    if math.isnan(mark.low):
        return text
    return f"{text} ({_text(mark.low, percent=percent)} to {_text(mark.high, percent=percent)})"


def _shape(x: float, y: float, number: int) -> str:
    """A circle, square, triangle, diamond, cross or ring."""
    r = _RADIUS
    paths = (
        f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0",
        f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}Z",
        f"M{x:.1f} {y - r - 1:.1f}l{r + 1} {2 * r}h{-2 * r - 2}Z",
        f"M{x:.1f} {y - r - 1:.1f}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}Z",
        f"M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}M{x + r:.1f} {y - r:.1f}l{-2 * r} {2 * r}",
        f"M{x - r:.1f} {y:.1f}h{2 * r}M{x:.1f} {y - r:.1f}v{2 * r}",
    )
    return f'<path class="mark s{number % STYLES}" d="{paths[number % STYLES]}"/>'


def _text(value: float, *, percent: bool) -> str:
    return f"{100 * value:.3g} %" if percent else f"{value:.4g}"
