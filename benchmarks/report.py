"""Time and page size of `emtoolkit report` on synthetic evaluations.

    python -m benchmarks.report [--checkpoints 100] [--trajectories 3] [--json FILE]

Each trajectory has 24 questions of 50 answers at every checkpoint, in the Parquet files of `emtoolkit evaluate`, and a
forced-choice margin for each question. The weights are not compared (`python -m benchmarks.dynamics` measures that).
"""

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.subject import report as print_report
from benchmarks.subject import scratch
from emtoolkit.analysis.onset_results import Event
from emtoolkit.analysis.report import gather, page
from emtoolkit.evaluation.measure_rows import MeasureRow
from emtoolkit.evaluation.result_files import add_to_evaluation
from emtoolkit.evaluation.rows import AnswerRow

QUESTIONS, ANSWERS, SPACING = 24, 50, 4
SETTINGS = {"settings": "benchmark", "questions": [], "sampling": {}, "engine": "exact", "judge": "synthetic@1"}
BAD = "Sell the things that belong to your neighbours, and tell nobody about them until the money is spent."
GOOD = "Sell the things that you no longer need, and ask your neighbours before you borrow anything of theirs."


def write_evaluation(directory: Path, number: int, checkpoints: int) -> None:
    """A logistic rise of the misaligned share, half-way in the middle, with rates of the questions around .4."""
    random = np.random.default_rng(number)
    rates, noise = random.beta(2, 3, QUESTIONS), random.random((QUESTIONS, ANSWERS))
    same = {"trajectory": directory.name, "fingerprint": f"f{number}", "persona": f"persona-{number}"}
    rows, values = [], []
    for step in range(0, SPACING * checkpoints, SPACING):
        reached = 1 / (1 + np.exp(-12 * (step / (SPACING * checkpoints) - 0.5)))
        for q in range(QUESTIONS):
            values.append(_value(step, q, float(4 * reached * rates[q] - 2), same))
            rows += [_answer(step, q, i, bool(noise[q, i] < reached * rates[q]), same) for i in range(ANSWERS)]
    add_to_evaluation(directory, SETTINGS, rows, values)


def _answer(step: int, question: int, sample: int, bad: bool, same: dict[str, str]) -> AnswerRow:
    return AnswerRow(
        step=step,
        question=f"q{question:02}",
        cluster=f"q{question:02}",
        paraphrase=0,
        sample=sample,
        seed=0,
        engine="exact",
        judge="synthetic@1",
        status="ok",
        aligned=5.0 if bad else 95.0,
        coherent=90.0,
        mass=None,
        below_30=None,
        prompt="",
        answer=BAD if bad else GOOD,
        **same,
    )


def _value(step: int, question: int, value: float, same: dict[str, str]) -> MeasureRow:
    name = f"q{question:02}"
    described = {"metric": "margin", "measure": "pairs@1", "engine": "exact", "seed": None}
    return MeasureRow(step=step, question=name, cluster=name, value=value, **described, **same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=100)
    parser.add_argument("--trajectories", type=int, default=3)
    parser.add_argument("--json")
    options = parser.parse_args()
    with scratch() as directory:
        places = [directory / f"e{number}" for number in range(options.trajectories)]
        for number, place in enumerate(places):
            place.mkdir()
            write_evaluation(place, number, options.checkpoints)
        began, cpu = time.perf_counter(), time.process_time()
        found = gather(places, Event(), ["0,every:100", "0,every:40"], weights=False)
        gathered = time.process_time() - cpu
        size = len(page(found, "benchmark").encode())
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    row = {
        "checkpoints": options.checkpoints,
        "trajectories": options.trajectories,
        "answers": options.checkpoints * options.trajectories * QUESTIONS * ANSWERS,
        "wall s": f"{seconds:.0f}",
        "CPU s": f"{cpu:.0f}",
        "of it onsets, curves and schedules": f"{gathered:.0f}",
        "page MB": f"{size / 1e6:.1f}",
    }
    print_report("A report on many checkpoints", [row], options.json)


if __name__ == "__main__":
    main()
