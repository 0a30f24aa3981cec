"""The output of `emtoolkit onset`: brackets, the events after them, and the curves that they were read from."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType

from emtoolkit.analysis.curves import Curve
from emtoolkit.analysis.decided_before import Standing
from emtoolkit.analysis.onset_results import Event, OnsetResult, Order, SeedOnset
from emtoolkit.analysis.onset_text import event_text, is_share, limits_text, number_text, onset_sentence
from emtoolkit.analysis.seeds import Distribution
from emtoolkit.cli.layout import Column, Records, facts, here, line, prose
from emtoolkit.cli.render import as_json
from emtoolkit.cli.render_metrics import without_nan
from emtoolkit.evaluation.metrics import DEFINITIONS


def onset_text(result: OnsetResult, standings: Sequence[Standing] = ()) -> RenderableType:
    """For each seed the brackets and the curve, then the distribution over the seeds."""
    event, parts = result.event, list[RenderableType]()
    for seed in result.seeds:
        parts += [*_seed(seed, event), line("")]
    if result.across_new_questions is not None and result.across_these_questions is not None:
        parts += [
            prose(f"Over {len(result.seeds)} seeds (Turnbull's estimator):"),
            facts(
                [
                    ("new questions", _distribution(result.across_new_questions)),
                    ("these questions", _distribution(result.across_these_questions)),
                ]
            ),
            line(""),
        ]
    if event.metric in DEFINITIONS:
        parts.append(prose(f"{event.metric}: {DEFINITIONS[event.metric].sentence}."))
    parts.append(
        prose(
            "A bracket (a, b] is the last step whose 95 % limits exclude the event and the first step whose limits "
            "show it. New questions: other questions of the same kind; these questions: the same asked again."
        )
    )
    return Group(*parts, *standing_lines(standings))


def standing_lines(standings: Sequence[Standing]) -> list[RenderableType]:
    """For each evaluation the analysis that was decided, and what is exploratory."""
    return [prose(f"{here(each.directory)}: {each.sentence}.") for each in standings]


def standings_json(standings: Sequence[Standing]) -> list[dict[str, Any]]:
    """The same as values."""
    return [
        {
            "directory": str(each.directory),
            "sha256": each.analysis.digest,
            "recorded": None if each.record is None else each.record.time,
            "inference": each.analysis.inference,
            "exploratory": list(each.exploratory),
        }
        for each in standings
    ]


def onset_json(result: OnsetResult, standings: Sequence[Standing] = ()) -> str:
    """The same with all curves as JSON; NaN is null, and so is an open end of a bracket."""
    seeds = []
    for seed in result.seeds:
        value: dict[str, Any] = {
            "directory": str(seed.directory),
            "trajectory": seed.trajectory,
            "persona": seed.persona,
            "new_questions": asdict(seed.new_questions),
            "these_questions": asdict(seed.these_questions),
            "curve": _curve_json(seed.curve),
            "companions": [_curve_json(curve) for curve in seed.companions],
        }
        if seed.order is not None:
            value["order"] = asdict(seed.order)
        seeds.append(value)
    value = {"event": asdict(result.event), "seeds": seeds, "notes": list(result.notes)}
    for name in ("across_new_questions", "across_these_questions"):
        if (distribution := getattr(result, name)) is not None:
            value[name] = [asdict(mass) for mass in distribution.masses]
    value["analyses"] = standings_json(standings)
    return as_json(without_nan(_lists(value)))


def _seed(seed: SeedOnset, event: Event) -> list[RenderableType]:
    evaluated = seed.curve.new_questions
    lines: list[tuple[str, RenderableType]] = [
        ("trajectory", here_or_name(seed.trajectory)),
        ("persona", seed.persona),
        ("event", event_text(event)),
        (
            "evaluated",
            f"{len(evaluated)} steps from {evaluated[0].step} to {evaluated[-1].step}"
            if len(evaluated) > 1
            else f"step {evaluated[0].step} only",
        ),
        ("new questions", onset_sentence(seed.new_questions, event)),
        ("these questions", onset_sentence(seed.these_questions, event)),
    ]
    if seed.order is not None:
        lines.append((f"before {seed.order.other.metric}?", _order(seed.order, event)))
    return [facts(lines), line(""), _table(seed, event)]


def here_or_name(trajectory: str) -> str:
    """A directory as it is written from here; a collection by its name."""
    from pathlib import Path

    return here(Path(trajectory)) if Path(trajectory).is_dir() else trajectory


def _order(order: Order, event: Event) -> str:
    answers = {"first": "yes", "second": "no, after it", "not decidable": "not decidable"}
    return (
        f"new questions: {answers[order.new_questions]}; these questions: {answers[order.these_questions]}; "
        f"first in {100 * order.chance:.0f} % of the resamples of {order.questions} questions"
    )


def _distribution(found: Distribution) -> str:
    parts = ", ".join(f"{mass.bracket} {100 * mass.probability:.0f} %" for mass in found.masses)
    return f"median in {found.median}: {parts}"


def _table(seed: SeedOnset, event: Event) -> RenderableType:
    kind = "rise" if event.kind == "rise" else "value"
    unit = ", points" if is_share(event.metric) else ""
    columns = [
        Column("step"),
        Column(f"{kind}{unit}"),
        Column("new questions"),
        Column("these questions"),
        *(
            Column(f"{curve.metric} %" if is_share(curve.metric) else f"{curve.metric} rise")
            for curve in seed.companions
        ),
    ]
    rows: list[list[RenderableType]] = []
    companions = [{point.step: point for point in curve.new_questions} for curve in seed.companions]
    for new, these in zip(seed.curve.new_questions, seed.curve.these_questions, strict=True):
        beside = [
            number_text(of_step[new.step].value, curve.metric) if new.step in of_step else ""
            for curve, of_step in zip(seed.companions, companions, strict=True)
        ]
        values = (
            number_text(new.value, event.metric),
            limits_text(new, event.metric),
            limits_text(these, event.metric),
        )
        rows.append([str(new.step), *values, *beside])
    return Records(columns, rows)


def _curve_json(curve: Curve) -> dict[str, Any]:
    return {
        "metric": curve.metric,
        "kind": curve.kind,
        "new_questions": [asdict(point) for point in curve.new_questions],
        "these_questions": [asdict(point) for point in curve.these_questions],
    }


def _lists(value: Any) -> Any:
    """`value` with lists in place of tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: _lists(entry) for key, entry in value.items()}
    return [_lists(entry) for entry in value] if isinstance(value, list | tuple) else value
