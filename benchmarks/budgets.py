"""The schedules that choose their steps in training, against fixed ones with equally many checkpoints.

    OMP_NUM_THREADS=1 python -m benchmarks.budgets [--directory outputs/budgets] [--seconds S]

Twelve fine-tunes in the sandbox (three personas, two data sets, two learning rates) are saved at every step, and the
forced choice is measured at each, which is the reference. A schedule that chooses its steps depends on
nothing but the weights, so the steps that it would have saved are computed from those of the reference, by the code
that a training runs. At the end one of the fine-tunes is trained with such schedules, and the steps are compared.

What is finished is not done again. With `--seconds`, nothing is begun after so many seconds.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from emtoolkit import ModelLoader, Schedule, Trajectory
from emtoolkit.checkpoints.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from emtoolkit.cli.app import main as emtoolkit_main
from emtoolkit.evaluation.answer_pairs import AnswerPair
from emtoolkit.evaluation.forced_choice import ForcedChoice
from emtoolkit.evaluation.stacked import stacked_adapters
from emtoolkit.json_files import read_json
from emtoolkit.sandbox import world
from emtoolkit.saving.weight_distance import TrainedWeights
from emtoolkit.schedules.adaptive import AdaptiveTerm, Distances, Moved, WeightPath

PERSONAS, DATASETS, RATES = ("baseline", "goodness", "sarcasm"), ("medical", "medical-good"), ("6e-4", "1.5e-4")
STEPS, AT_A_TIME = 200, 20
# Every third held-out pair of answers is asked for; the event is a rise by so much since step 0.
PAIRS, RISE = 3, 0.1
FIXED = ("dense-early", "every:25", "0,every:25", "0,every:100", "0,log2:128")
# Shares for `moved:`, so that one with as many checkpoints as a fixed schedule can be found.
SHARES = (0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9)
PROVED = ("budget:8", "moved:30%")


@dataclass(frozen=True, slots=True)
class Reference:
    """One densely saved fine-tune."""

    persona: str
    dataset: str
    rate: str

    @property
    def name(self) -> str:
        return f"{self.persona}-{self.dataset}-{self.rate}"

    def train(self, directory: Path, schedule: str) -> None:
        """The fine-tune, saved at the steps of `schedule`."""
        sys.argv = [
            *("emtoolkit", "train", "sandbox", "--persona", self.persona, "--dataset", self.dataset, "--resume"),
            *("--schedule", schedule, "--output-dir", str(directory), "--set", "wandb.mode=disabled"),
            *("--set", f"training.max_steps={STEPS}", "--set", f"training.learning_rate={self.rate}"),
        ]
        print("$", *sys.argv, flush=True)
        try:
            emtoolkit_main()
        except SystemExit as stop:
            if stop.code:
                raise


def references() -> Iterator[Reference]:
    yield from (Reference(*parts) for parts in product(PERSONAS, DATASETS, RATES))


def measured(run: Path) -> dict[int, float]:
    """The probability of the misaligned answer of a pair, if it must be one of both, by step: the mean of the pairs."""
    pairs = [AnswerPair(p.id, p.question, p.good, p.bad) for p in world.held_out_pairs()[::PAIRS]]
    checkpoints = list(Trajectory.open(run))
    measure, loaded, curve = ForcedChoice(pairs), ModelLoader().load(checkpoints[0]), dict[int, float]()
    for start in range(0, len(checkpoints), AT_A_TIME):
        some = checkpoints[start : start + AT_A_TIME]
        with stacked_adapters(loaded.model, [each.path for each in some]):
            found = measure.measure_stacked(loaded, len(some), ())
        for checkpoint, values in zip(some, found, strict=True):
            margins = np.array([*values["margin"].values()], dtype=np.float64)
            curve[checkpoint.step] = float(np.mean(1 / (1 + np.exp(-margins))))
    return curve


def chosen(run: Path, terms: Iterable[AdaptiveTerm]) -> dict[str, tuple[int, ...]]:
    """The steps that each of `terms` would have saved, from the weights of every step in `run`."""
    states = [load_file(run / f"checkpoint-{step}" / ADAPTER_WEIGHTS) for step in range(STEPS + 1)]
    weights = TrainedWeights.of(states[0], read_json(run / "checkpoint-0" / ADAPTER_CONFIG))
    return {str(term): _simulated(term, states, weights) for term in terms}


def _simulated(term: AdaptiveTerm, states: Sequence[Mapping[str, Tensor]], weights: TrainedWeights) -> tuple[int, ...]:
    path, start = WeightPath(), weights.copied(states[0])
    last = start
    for step in range(1, STEPS + 1):
        if not term.is_measured(step, STEPS):
            continue
        now = states[step]
        moved, from_start = weights.distances(now, last, start if term.moved_since_kept else last)
        path, due = term.measured(path, Distances(moved, from_start))
        if due:
            path = _kept(term, path, step)
        if due or not term.moved_since_kept:
            last = weights.copied(now)
    return _kept(term, path, STEPS).steps


def _kept(term: AdaptiveTerm, path: WeightPath, step: int) -> WeightPath:
    path = path.keeping(step)
    surplus = term.surplus(path)
    return path if surplus is None else path.without(surplus)


def simulate(run: Path) -> dict[str, tuple[int, ...]]:
    """The steps of the fixed schedules, of budgets with as many checkpoints, and of every share of `SHARES`."""
    fixed = {spec: tuple(Schedule.parse(spec).steps(STEPS)) for spec in FIXED}
    counts = sorted({len(steps) for steps in fixed.values()})
    budgets = [term for count in counts if (term := Schedule.parse(f"budget:{count}").adaptive) is not None]
    return fixed | chosen(run, [*budgets, *map(Moved, SHARES)])


def bracket(steps: Sequence[int], curve: Mapping[int, float]) -> tuple[int | None, int | None]:
    """The last of `steps` before the event and the first after it; None where no step bounds it."""
    threshold = curve[0] + RISE
    after = next((step for step in steps if curve[step] > threshold), None)
    return max((step for step in steps if after is None or step < after), default=None), after


def error(steps: Sequence[int], curve: Mapping[int, float]) -> tuple[float, float]:
    """Root mean square and largest error of the interpolated curve, against every step of the reference."""
    at = sorted(curve)
    difference = np.interp(at, steps, [curve[step] for step in steps]) - np.array([curve[step] for step in at])
    return float(np.sqrt(np.mean(difference**2))), float(np.abs(difference).max())


def same_count(fixed: str, steps: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """The steps of a fixed schedule, of a budget with as many checkpoints, and of the share with at most as many."""
    count = len(steps[fixed])
    shares = {spec: each for spec, each in steps.items() if spec.startswith("moved:") and len(each) <= count}
    share = max(shares, key=lambda spec: len(shares[spec]), default=None)
    found = {fixed: steps[fixed], f"budget:{count}": steps[f"budget:{count}"]}
    return found | ({} if share is None else {"moved": shares[share]})


def table(results: Sequence[tuple[Mapping[int, float], Mapping[str, Sequence[int]]]]) -> str:
    """A row for each fixed schedule and each that spends as many checkpoints: the brackets and the errors of curves."""
    lines = [
        "| schedule | checkpoints | onset seen | width: median (largest) | RMSE: mean (largest) | largest error |",
        "|---|---|---|---|---|---|",
    ]
    for fixed in FIXED:
        cases = [(curve, same_count(fixed, steps)) for curve, steps in results]
        rising = sum(max(curve.values()) > curve[0] + RISE for curve, _ in cases)
        for spec in dict.fromkeys(spec for _, views in cases for spec in views):
            seen = [(curve, views[spec]) for curve, views in cases if spec in views]
            ends = [bracket(steps, curve) for curve, steps in seen]
            widths = sorted(after - before for before, after in ends if before is not None and after is not None)
            errors = [error(steps, curve) for curve, steps in seen]
            counts = sorted({len(steps) for _, steps in seen})
            lines.append(
                f"| `{spec}` | {counts[0]}{f' to {counts[-1]}' if counts[1:] else ''} | {len(widths)} of {rising} "
                f"| {f'{np.median(widths):g} ({widths[-1]})' if widths else 'none'} "
                f"| {np.mean([rms for rms, _ in errors]):.3f} ({max(rms for rms, _ in errors):.3f}) "
                f"| {max(largest for _, largest in errors):.2f} |"
            )
    return "\n".join(lines)


def prove(directory: Path) -> dict[str, bool]:
    """Whether trainings with chosen steps save those that were simulated."""
    reference = next(references())
    simulated = chosen(directory / reference.name, [_term(spec) for spec in PROVED])
    equal = {}
    for spec in PROVED:
        run = directory / f"proof-{spec.partition(':')[0]}"
        reference.train(run, spec)
        equal[spec] = Trajectory.open(run).steps == simulated[spec]
    return equal


def _term(spec: str) -> AdaptiveTerm:
    term = Schedule.parse(spec).adaptive
    if term is None:
        raise SystemExit(f"{spec}: chooses no steps")
    return term


def once(file: Path, make: Callable[[], Mapping[Any, Any]]) -> dict[str, Any]:
    """The content of a JSON file, which is made if it does not exist."""
    if not file.is_file():
        file.write_text(json.dumps(make(), indent=1))
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("outputs/budgets"))
    parser.add_argument("--seconds", type=float, default=math.inf)
    options = parser.parse_args()
    home, started = options.directory, time.monotonic()
    home.mkdir(parents=True, exist_ok=True)
    results = []
    for reference in references():
        if time.monotonic() - started > options.seconds:
            break
        run = home / reference.name
        if not (run / f"checkpoint-{STEPS}").is_dir():
            reference.train(run, "0,every:1")
        curve = once(home / f"{run.name}.curve.json", lambda run=run: measured(run))
        steps = once(home / f"{run.name}.steps.json", lambda run=run: simulate(run))
        results.append(({int(step): value for step, value in curve.items()}, steps))
        print(f"{run.name}: {time.process_time():.0f} s of CPU time in this process", flush=True)
    else:
        print(once(home / "proof.json", lambda: prove(home)))
    print(f"{len(results)} of {len(list(references()))} fine-tunes, {time.process_time():.0f} s of CPU time\n")
    print(table(results))


if __name__ == "__main__":
    main()
