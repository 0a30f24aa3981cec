"""The figures of the report as values, which are drawn as SVG in the page, and by matplotlib for a paper."""

from collections.abc import Sequence
from dataclasses import dataclass

from emtoolkit.analysis.chart import Mark, Series, Span
from emtoolkit.analysis.curves import Curve, curve_of
from emtoolkit.analysis.dynamics import Dynamics
from emtoolkit.analysis.onset_results import Event, OnsetResult
from emtoolkit.analysis.onset_text import event_text, is_share
from emtoolkit.evaluation.metrics import DEFINITIONS, summarise
from emtoolkit.evaluation.result_files import StoredEvaluation


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over steps with a title and a caption; `percent` writes shares in percent, and `spans` are shaded.

    `name` is that of its files: letters, digits and hyphens.
    """

    name: str
    title: str
    series: tuple[Series, ...]
    percent: bool = False
    spans: tuple[Span, ...] = ()
    caption: str = ""


def onset_charts(results: Sequence[OnsetResult]) -> list[Chart]:
    """For each persona the curve of each seed, with the brackets of the onsets for new questions."""
    charts = []
    for number, result in enumerate(results, start=1):
        seeds = result.seeds
        spans = [
            Span(o.bracket.lower, o.bracket.upper, f"{seed.trajectory}: onset in {o.bracket}")
            for seed in seeds
            if (o := seed.new_questions).bracket.lower is not None and o.bracket.upper is not None
        ]
        charts.append(
            Chart(
                f"onset-{number}",
                f"{seeds[0].persona}: {event_text(result.event)}",
                tuple(_series(seed.trajectory, seed.curve) for seed in seeds),
                is_share(result.event.metric),
                tuple(spans),
                "Bands: 95 % limits for new questions. Shaded: brackets of the onset for new questions.",
            )
        )
    return charts


def rate_charts(evaluations: Sequence[StoredEvaluation], event: Event) -> list[Chart]:
    """The EM rate itself, where the event is its rise."""
    metric = event.metric
    if event.kind != "rise" or metric not in DEFINITIONS:
        return []
    levels = tuple(_series(_label(each), curve_of(each, metric, "level")) for each in evaluations)
    return [Chart("rate", f"EM rate, {metric}", levels, percent=True, caption=f"{DEFINITIONS[metric].sentence}.")]


def answer_charts(evaluations: Sequence[StoredEvaluation]) -> list[Chart]:
    """The shares of coherent and of truncated answers."""
    coherent, truncated = [], []
    for each in evaluations:
        marks, cut = [], []
        for step in sorted({row.step for row in each.rows}):
            rows = [row for row in each.rows if row.step == step]
            summary = summarise([row.scored() for row in rows], ())
            marks.append(Mark(step, summary.coherence))
            cut.append(Mark(step, summary.statuses.get("truncated", 0) / len(rows)))
        if marks:
            coherent.append(Series(_label(each), tuple(marks)))
            truncated.append(Series(_label(each), tuple(cut)))
    if not coherent:
        return []
    below = "Below 50 % a step decides nothing."
    return [
        Chart("coherence", "Coherent answers", tuple(coherent), percent=True, caption=below),
        Chart("truncation", "Truncated answers", tuple(truncated), percent=True),
    ]


def companion_charts(results: Sequence[OnsetResult]) -> list[Chart]:
    """The continuous companions: changed answers, and the rise of every metric that was measured."""
    seeds = [seed for result in results for seed in result.seeds]
    charts = []
    names = dict.fromkeys(curve.metric for seed in seeds for curve in seed.companions)
    for number, name in enumerate(names, start=1):
        series = [_series(f"{s.persona}, {s.trajectory}", c) for s in seeds for c in s.companions if c.metric == name]
        title = "Answers that differ from those of step 0" if name == "changed" else f"{name}, rise since step 0"
        charts.append(Chart(f"companion-{number}", title, tuple(series), is_share(name)))
    return charts


def weight_charts(dynamics: Sequence[Dynamics]) -> list[Chart]:
    """Norm of the change, distance per step and local cosine of each trajectory."""
    if not dynamics:
        return []
    norms = tuple(Series(d.trajectory, tuple(Mark(s.step, s.norm) for s in d.steps)) for d in dynamics)
    speeds = tuple(Series(d.trajectory, tuple(Mark(s.step, s.per_step) for s in d.steps)) for d in dynamics)
    turns = tuple(
        Series(f"{d.trajectory}, window {w}", tuple(Mark(s.step, s.cosines[w].value) for s in d.steps))
        for d in dynamics
        for w in d.windows
    )
    straight = "1 on a straight line; only where both sides have nearly the window."
    return [
        Chart("norm", "Norm of the change, scale · BA", norms),
        Chart("distance", "Distance per step", speeds),
        Chart("cosine", "Local cosine", turns, caption=straight),
    ]


def _series(name: str, curve: Curve) -> Series:
    return Series(name, tuple(Mark(p.step, p.value, p.limits.low, p.limits.high) for p in curve.new_questions))


def _label(evaluation: StoredEvaluation) -> str:
    first = evaluation.all_rows[0]
    return f"{first.persona}, {first.trajectory}"
