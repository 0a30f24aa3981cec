"""The output of `emtoolkit compare` and `emtoolkit suggest`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType

from emtoolkit.analysis.compare import Comparison, Comparisons, View, verdict
from emtoolkit.analysis.decided_before import Standing
from emtoolkit.analysis.onset import Onset
from emtoolkit.analysis.onset_text import event_text
from emtoolkit.analysis.schedule_costs import ScheduleSummary
from emtoolkit.analysis.suggest import Suggestion
from emtoolkit.byte_sizes import format_size
from emtoolkit.cli.layout import Column, Records, facts, line, prose
from emtoolkit.cli.render import as_json
from emtoolkit.cli.render_metrics import without_nan
from emtoolkit.cli.render_onset import here_or_name, standing_lines, standings_json

_COLUMNS = (
    Column("schedule", "left"),
    Column("checkpoints"),
    Column("disk"),
    Column("RMSE"),
    Column("largest error"),
    Column("onset, new questions", "left"),
    Column("onset, these questions", "left"),
    Column("chance %"),
)


def compare_text(
    found: Comparisons, summaries: Mapping[str, Sequence[ScheduleSummary]], standings: Sequence[Standing] = ()
) -> RenderableType:
    """For each trajectory a line for each schedule, then `summaries` of the schedules for each persona."""
    parts: list[RenderableType] = [facts([("event", event_text(found.event))]), line("")]
    for each in found.trajectories:
        parts += [
            facts([("trajectory", here_or_name(each.trajectory)), ("persona", each.persona)]),
            line(""),
            Records(_COLUMNS, [_row(view, each) for view in (each.reference, *each.views)]),
            line(""),
        ]
    for persona, schedules in summaries.items():
        count = sum(each.persona == persona for each in found.trajectories)
        parts += [prose(f"{persona}, {count} trajectories:"), _over_trajectories(schedules), line("")]
    return Group(
        *parts,
        prose(
            "The first line is the reference: all steps that count as the truth. Between two steps a curve is "
            "interpolated linearly, and before the first it has the first value, for every schedule; the baseline of a "
            "rise is step 0, which needs no checkpoint."
        ),
        prose(
            "Chance: of an onset with both ends, over resamples of the questions. Elsewhere: a bracket that does not "
            "touch the reference's."
        ),
        *standing_lines(standings),
    )


def compare_json(found: Comparisons, standings: Sequence[Standing] = ()) -> str:
    """The same as JSON; NaN is null, and so is an open end of a bracket."""
    trajectories = [
        {
            "directory": str(each.directory),
            "trajectory": each.trajectory,
            "persona": each.persona,
            "reference": _view_json(each.reference, each),
            "schedules": [_view_json(view, each) for view in each.views],
        }
        for each in found.trajectories
    ]
    value = {"event": asdict(found.event), "trajectories": trajectories, "notes": list(found.notes)}
    return as_json(value | {"analyses": standings_json(standings)})


def suggestion_text(found: Suggestion) -> RenderableType:
    """The schedule, ready to paste, and how well it does on trajectories that it was not chosen on."""
    parts: list[RenderableType] = [
        facts([("schedule", found.schedule), ("RMSE in-sample", f"{found.in_sample:.4f}")]),
        line(""),
    ]
    if not found.held_out:
        parts.append(prose("In-sample: chosen on one curve, and not tested on any other."))
        return Group(*parts)
    others = list(found.held_out[0].others)
    columns = [Column("left out", "left"), Column("suggested"), Column("best"), Column("regret"), *map(Column, others)]
    rows: list[list[RenderableType]] = [
        [
            here_or_name(each.trajectory),
            *(f"{value:.4f}" for value in (each.suggested, each.best, each.regret)),
            *(f"{each.others[name]:.4f}" if name in each.others else "—" for name in others),
        ]
        for each in found.held_out
    ]
    return Group(
        *parts,
        Records(columns, rows),
        line(""),
        prose("RMSE on each trajectory: of a schedule chosen on the others, and of the best one in hindsight."),
    )


def suggestion_json(found: Suggestion) -> str:
    """The same as JSON."""
    held_out = [asdict(each) | {"regret": each.regret} for each in found.held_out]
    value = {"schedule": found.schedule, "steps": list(found.steps), "in_sample": found.in_sample}
    return as_json(without_nan(value | {"held_out": held_out}))


def _row(view: View, of: Comparison) -> list[RenderableType]:
    return [
        view.schedule,
        str(len(view.steps)),
        "—" if view.bytes is None else format_size(view.bytes),
        _number(view.rmse),
        _number(view.largest_error),
        _onset(view, of.reference.new_questions, view.new_questions),
        _onset(view, of.reference.these_questions, view.these_questions),
        "—" if math.isnan(view.chance) else f"{100 * view.chance:.0f}",
    ]


def _onset(view: View, reference: Onset | None, onset: Onset | None) -> str:
    found = verdict(reference, onset)
    if found in ("seen", "elsewhere") and onset is not None:
        return str(onset.bracket) if found == "seen" else f"elsewhere {onset.bracket}"
    return found


def _over_trajectories(schedules: Sequence[ScheduleSummary]) -> RenderableType:
    columns = [Column("schedule", "left"), Column("mean RMSE"), Column("seen"), Column("median width")]
    rows: list[list[RenderableType]] = [
        [
            each.schedule,
            _number(each.rmse),
            f"{each.seen} of {each.trajectories}",
            "—" if each.width is None else f"{each.width:g}",
        ]
        for each in schedules
    ]
    return Records(columns, rows)


def _number(value: float) -> str:
    return "—" if math.isnan(value) else f"{value:.4f}"


def _view_json(view: View, of: Comparison) -> Any:
    value = asdict(view) | {"steps": list(view.steps), "missing": list(view.missing)}
    for name in ("new_questions", "these_questions"):
        onset = getattr(view, name)
        value[name] = None
        if onset is not None:
            value[name] = {
                "verdict": verdict(getattr(of.reference, name), onset),
                "status": onset.status,
                "lower": onset.bracket.lower,
                "upper": onset.bracket.upper,
                "width": onset.bracket.width,
            }
    return without_nan(value)
