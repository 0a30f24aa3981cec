"""How often the bracket of an onset holds the true step, in simulation.

    python -m benchmarks.onset [--replicates 400] [--schedule 0,every:25] [--json FILE]

A training has 397 steps. Each replicate draws the final rates of the questions from a Beta distribution with a mean of
.30 and a correlation of .26, and the step at which the curve is half-way from 20 to 300; it takes 50 answers to each
question at the steps of a schedule. A curve is a jump, or a logistic function that rises from 12 to 88 % within 40 or
160 steps. The event is a rise of more than ten points since step 0. For new questions the true step is that of the mean
of the population, for these questions that of the questions that were drawn. Answers are coupled, as emtoolkit samples
them (the same noise at every step), or independent. A curve that never crosses is held by "not seen".

Flat curves stay at a rate of 0, .05 or .20, or rise to .07, and have no onset. The bars: 95 % of the brackets hold
the true step, and 2.5 % of the flat curves have an onset.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.subject import report
from emtoolkit.analysis.onset import Onset, Point, find_onset
from emtoolkit.evaluation.differences import rate_difference
from emtoolkit.evaluation.intervals import Counts, Interval
from emtoolkit.schedules.schedule import Schedule

TOTAL, ANSWERS, THRESHOLD = 397, 50, 0.10
MEAN, CORRELATION = 0.30, 0.26
SCHEDULES = ("0,dense-early", "0,every:25", "0,every:100", "0,log2:256")
QUESTIONS = (8, 24)
_BAR_HELD, _BAR_FALSE = 0.95, 0.025

# The share of its final rise that a curve has reached at a step, for a half-way step.
Shape = Callable[[np.ndarray, float], np.ndarray]


def _logistic(width: float) -> Shape:
    """From 12 to 88 % within `width` steps, 0 at step 0."""

    def shape(steps: np.ndarray, half: float) -> np.ndarray:
        start = 1 / (1 + np.exp(4 * half / width))
        return (1 / (1 + np.exp(-4 * (steps - half) / width)) - start) / (1 - start)

    return shape


SHAPES: dict[str, Shape] = {
    "jump": lambda steps, half: (steps >= np.ceil(half)).astype(float),
    "40 steps": _logistic(40),
    "160 steps": _logistic(160),
}
# Rate at step 0 and at the end.
FLAT = {"0": (0.0, 0.0), ".05": (0.05, 0.05), ".20": (0.20, 0.20), "to .07": (0.0, 0.07)}


@dataclass(frozen=True, slots=True)
class Found:
    """What one replicate found for one inference: the onset, and the true step, infinite where there is none."""

    onset: Onset
    truth: float

    @property
    def holds(self) -> bool:
        bracket = self.onset.bracket
        lower = -1 if bracket.lower is None else bracket.lower
        upper = np.inf if bracket.upper is None else bracket.upper
        return bool(lower < self.truth <= upper)


def answers(rates: np.ndarray, rng: np.random.Generator, *, coupled: bool) -> list[Counts]:
    """Misaligned answers of each question at each step, for rates of shape [steps, questions]."""
    noise = rng.random((1 if coupled else len(rates), rates.shape[1], ANSWERS))
    misaligned = (noise < rates[:, :, None]).sum(axis=2)
    return [Counts(row.tolist(), [ANSWERS] * len(row)) for row in misaligned]


def brackets(steps: Sequence[int], counts: Sequence[Counts]) -> tuple[Onset, Onset]:
    """The onsets for new questions and for these questions."""
    new, these = [Point(0, 0.0, Interval(0, 0))], [Point(0, 0.0, Interval(0, 0))]
    for step, now in zip(steps[1:], counts[1:], strict=True):
        rise = rate_difference([now], [counts[0]])
        new.append(Point(step, rise.mean, rise.new_questions))
        these.append(Point(step, rise.mean, rise.these_questions))
    return find_onset(new, THRESHOLD), find_onset(these, THRESHOLD)


def replicate(
    spec: str, questions: int, shape: Shape, rng: np.random.Generator, *, coupled: bool
) -> tuple[Found, Found]:
    """One training, one evaluation, both brackets."""
    steps = list(Schedule.parse(spec).steps(TOTAL))
    concentration = 1 / CORRELATION - 1
    final = rng.beta(MEAN * concentration, (1 - MEAN) * concentration, questions)
    half = rng.uniform(20, 300)
    new, these = brackets(steps, answers(np.outer(shape(np.array(steps), half), final), rng, coupled=coupled))
    whole = shape(np.arange(TOTAL + 1), half)
    return Found(new, _first(whole * MEAN)), Found(these, _first(whole * final.mean()))


def _first(curve: np.ndarray) -> float:
    above = np.flatnonzero(curve > THRESHOLD)
    return float(above[0]) if len(above) else np.inf


def flat(spec: str, questions: int, rates: tuple[float, float], rng: np.random.Generator) -> tuple[bool, bool]:
    """Whether a curve without an onset has one for new and for these questions; its answers are independent.

    The questions that were drawn may rise by more than the threshold where their population does not: that is no
    false onset for these questions.
    """
    steps = list(Schedule.parse(spec).steps(TOTAL))
    means = np.linspace(*rates, TOTAL + 1)[steps]
    concentration = 1 / CORRELATION - 1
    at = np.maximum(max(rates), 1e-9)
    drawn = rng.beta(at * concentration, (1 - at) * concentration, questions)
    new, these = brackets(steps, answers(np.outer(means / at, drawn), rng, coupled=False))
    truly_rises = drawn.mean() * (rates[1] - rates[0]) / at > THRESHOLD
    return new.status != "not_seen", these.status != "not_seen" and not truly_rises


def rising_row(spec: str, questions: int, name: str, replicates: int, *, coupled: bool) -> tuple[dict[str, str], float]:
    """A row of the table, and the lower of both coverages."""
    rng = np.random.default_rng([questions, len(spec), len(name), coupled])
    found = [replicate(spec, questions, SHAPES[name], rng, coupled=coupled) for _ in range(replicates)]
    row = {"schedule": spec, "questions": str(questions), "curve": name, "answers": "coupled" if coupled else "apart"}
    held = []
    for inference, of in (("new", [new for new, _ in found]), ("these", [these for _, these in found])):
        seen = [each.onset.bracket for each in of if each.onset.status == "seen"]
        widths = [b.upper - b.lower for b in seen if b.upper is not None and b.lower is not None]
        held.append(float(np.mean([each.holds for each in of])))
        row |= {
            f"{inference}: holds": f"{held[-1]:.3f}",
            f"{inference}: seen": f"{len(seen) / replicates:.2f}",
            f"{inference}: width": f"{np.median(widths):.0f}" if widths else "—",
        }
    return row, min(held)


def flat_row(spec: str, questions: int, name: str, replicates: int) -> tuple[dict[str, str], float]:
    """A row of the table of flat curves, and the higher share of false onsets."""
    rng = np.random.default_rng([questions, len(spec), len(name), 2])
    found = [flat(spec, questions, FLAT[name], rng) for _ in range(replicates)]
    false = [float(np.mean(of)) for of in zip(*found, strict=True)]
    row = {"schedule": spec, "questions": str(questions), "rate": name}
    return row | {"new: false onsets": f"{false[0]:.3f}", "these: false onsets": f"{false[1]:.3f}"}, max(false)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--schedule", action="append", help="one of the four; default: all")
    parser.add_argument("--json")
    options = parser.parse_args()
    rising, flats, outside = [], [], []
    for spec in options.schedule or SCHEDULES:
        for questions in QUESTIONS:
            for name in SHAPES:
                for coupled in (True, False):
                    row, held = rising_row(spec, questions, name, options.replicates, coupled=coupled)
                    rising.append(row)
                    if held < _BAR_HELD:
                        outside.append(f"holds {held:.3f}: {row}")
            for name in FLAT:
                row, false = flat_row(spec, questions, name, options.replicates)
                flats.append(row)
                if false > _BAR_FALSE:
                    outside.append(f"false onsets {false:.3f}: {row}")
    report(f"Brackets that hold the true step, {options.replicates} replicates", rising, options.json)
    report(f"False onsets of flat curves, {options.replicates} replicates", flats, None)
    for sentence in outside:
        print(sentence)
    sys.exit(bool(outside))


if __name__ == "__main__":
    main()
