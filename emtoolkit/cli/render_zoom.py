"""The output of `emtoolkit zoom`: how the bracket became narrow, and why it is not narrower."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from emtoolkit.analysis.onset_text import event_text, onset_sentence
from emtoolkit.cli.layout import Column, Records, facts, here, line, prose
from emtoolkit.cli.render import as_json
from emtoolkit.cli.render_metrics import without_nan
from emtoolkit.schedules.steps import elided

if TYPE_CHECKING:
    from emtoolkit.evaluation.results import EvaluationResult
    from emtoolkit.evaluation.wandb_record import EvaluationRun
    from emtoolkit.zoom import Zoomed


def zoom_text(found: "Zoomed", result: "EvaluationResult", run: "EvaluationRun | None") -> RenderableType:
    """A line for each round, then the bracket, its cost, and what limits its width."""
    columns = [Column("evaluated"), Column("bracket")]
    rows = [[elided(each.evaluated), str(each.onset.bracket)] for each in found.rounds]
    return Group(
        Records(columns, rows),
        line(""),
        facts(
            [
                ("event", f"{event_text(found.event)}, for {found.inference.replace('_', ' ')}"),
                ("onset", onset_sentence(found.onset, found.event)),
                ("made again", _made(found)),
                ("evaluated", f"{len(found.rounds[0].evaluated)} steps first, then {len(found.evaluated)}"),
                ("evaluation", here(result.directory)),
                *(() if run is None else (("W&B run", run.path),)),
            ]
        ),
        line(""),
        prose(sentence(found)),
    )


def zoom_json(found: "Zoomed", result: "EvaluationResult", run: "EvaluationRun | None") -> str:
    """The same as JSON."""
    bracket = found.onset.bracket
    values = {
        "event": asdict(found.event),
        "inference": found.inference,
        "until": found.until,
        "status": found.onset.status,
        "lower": bracket.lower,
        "upper": bracket.upper,
        "ended_by": found.ended_by,
        "undecided": _undecided(found),
        "rounds": [
            {"evaluated": list(each.evaluated), "lower": each.onset.bracket.lower, "upper": each.onset.bracket.upper}
            for each in found.rounds
        ],
        "made": list(found.made),
        "trained_steps": found.trained_steps,
        "evaluation": str(result.directory),
        "wandb": None if run is None else {"run": run.path, "sent": run.sent},
    }
    return as_json(without_nan(values))


def sentence(found: "Zoomed") -> str:
    """Why the zoom has ended."""
    width = found.onset.bracket.width
    if found.ended_by == "width":
        return f"The bracket is {width} steps wide, which is at most the {found.until} steps of --until."
    if found.ended_by == "no_bracket":
        return "There is no bracket to narrow: the onset is not between two evaluated steps."
    undecided = _undecided(found)
    return (
        f"The bracket stays {width} steps wide because of the evaluation, and not because of the schedule: steps at "
        f"most {found.until} apart are evaluated in it, and the limits at {elided(undecided, 60)} include the "
        "threshold. More answers (--samples) or more questions narrow the bracket; more checkpoints do not."
    )


def _undecided(found: "Zoomed") -> list[int]:
    bracket = found.onset.bracket
    low, high = bracket.lower or 0, bracket.upper
    return [step for step in found.onset.undecided if low < step and (high is None or step < high)]


def _made(found: "Zoomed") -> str:
    if not found.made:
        return "nothing"
    return f"{len(found.made)} steps ({elided(found.made)}), for {found.trained_steps} optimizer steps"
