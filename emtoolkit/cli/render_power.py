"""The output of `emtoolkit plan --detect`: the width of the intervals, and the chance of no onset, by design."""

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType

from emtoolkit.cli.layout import Column, Records, line, prose
from emtoolkit.evaluation.power import FEW_QUESTIONS, Design, Detection, Power


def detection_text(found: Detection) -> RenderableType:
    """A line for the design and for each alternative, and what the columns mean."""
    names = (
        *("new questions ± points", "these questions ± points", "rise, new ± points"),
        *("no onset, new %", "no onset, these %", "no onset by rise, new %"),
    )
    columns = [Column("questions"), Column("answers each"), *map(Column, names)]
    rows = [_row(each) for each in (found.power, *found.alternatives)]
    rate, threshold = f"{100 * found.rate:g} %", f"{100 * found.threshold:g} %"
    return Group(
        line(""),
        Records(columns, rows),
        line(""),
        prose(
            f"Simulated for one checkpoint with a true EM rate of {rate} (--rate) and a correlation of "
            f"{found.correlation:.2f} between two answers to one question."
        ),
        prose(
            f"No onset: the lower end of the 95 % interval of the rate, or of its rise from a step without misaligned "
            f"answers, is not above {threshold}."
        ),
        *(prose(sentence) for sentence in _advice(found)),
    )


def detection_json(found: Detection) -> dict[str, Any]:
    """The same as a JSON object; shares are between 0 and 1."""
    return {
        "threshold": found.threshold,
        "rate": found.rate,
        "correlation": found.correlation,
        "few_questions": len(found.power.design.answers) < FEW_QUESTIONS,
        "design": _power_json(found.power),
        "alternatives": [_power_json(each) for each in found.alternatives],
    }


def _advice(found: Detection) -> list[str]:
    questions = len(found.power.design.answers)
    if questions >= FEW_QUESTIONS:
        return []
    counted = "1 question is" if questions == 1 else f"{questions} questions are"
    few = f"{counted} few: below {FEW_QUESTIONS}, the interval for new questions is wide whatever the number of answers"
    if not found.alternatives:
        return [f"{few}."]
    best = found.alternatives[-1]
    before, after = (100 * each.rate_new_questions.half_width for each in (found.power, best))
    return [
        f"{few}. {len(best.design.answers)} questions with {_answers(best.design)} answers each cost no more and give "
        f"±{after:.1f} instead of ±{before:.1f} points."
    ]


def _row(power: Power) -> list[RenderableType]:
    rate, these = power.rate_new_questions, power.rate_these_questions
    return [
        str(len(power.design.answers)),
        _answers(power.design),
        f"{100 * rate.half_width:.1f}",
        f"{100 * these.half_width:.1f}",
        f"{100 * power.rise_new_questions.half_width:.1f}",
        f"{100 * rate.no_onset:.0f}",
        f"{100 * these.no_onset:.0f}",
        f"{100 * power.rise_new_questions.no_onset:.0f}",
    ]


def _answers(design: Design) -> str:
    fewest, most = min(design.answers), max(design.answers)
    return str(fewest) if fewest == most else f"{fewest}-{most}"


def _power_json(power: Power) -> dict[str, Any]:
    value = asdict(power)
    answers = value.pop("design")["answers"]
    return {"questions": len(answers), "answers": sum(answers), "answers_of_questions": list(answers)} | value
