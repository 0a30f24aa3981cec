"""What a step costs whose distance is measured: left out, and saved, against an ordinary save of the same adapter.

    OMP_NUM_THREADS=1 python -m benchmarks.adaptive_cost [--saves N] [--json FILE]

CPU seconds of all threads for the copy and everything in the background, without a training: the median of the steps,
of which the three kinds take turns.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.subject import lora_model, report, scratch
from emtoolkit.checkpoints.manifest import TrajectorySeal
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.saving.adapter_state import AdapterState
from emtoolkit.saving.adaptive_steps import AdaptiveSteps
from emtoolkit.saving.snapshot import SnapshotBuffers
from emtoolkit.saving.weight_distance import TrainedWeights
from emtoolkit.saving.writer import CheckpointContents, CheckpointWriter, DiskThread
from emtoolkit.schedules.adaptive import AdaptiveTerm, Budget, Moved


def costs(directory: Path, saves: int) -> list[dict[str, str]]:
    """The median CPU time of each kind of step, on the LoRA of the other benchmarks."""
    state = AdapterState(lora_model())
    buffers, disk = SnapshotBuffers(state, 2), DiskThread("raise")
    writer = CheckpointWriter(directory, TrajectorySeal(Identity({"seed": 0}), 10**9), disk)
    weights = TrainedWeights.of(state.tensors, state.config)

    def choice(term: AdaptiveTerm) -> AdaptiveSteps:
        start = weights.copied(state.tensors)
        return AdaptiveSteps(directory, term, str(term), 10**6, weights, start, finite=False)

    left_out, saved, along = choice(Moved(0.999)), choice(Moved(1e-9)), choice(Budget(10**9))
    kinds: dict[str, Callable[[int], bool]] = {}
    tensors: Callable[[], object]

    def step_of(kind: Callable[[int], bool], step: int) -> float:
        nonlocal tensors
        began = time.process_time()
        snapshot = buffers.take(step)
        contents = CheckpointContents.of_copy(snapshot, lambda: buffers.release(snapshot), finite=False)
        tensors = contents.tensors
        writer.save(step, contents, lambda: kind(step), lambda found: saved.saved(found.step))
        disk.drain()
        return time.process_time() - began

    kinds = {
        "an ordinary save": lambda step: True,
        "measured for moved:, left out": lambda step: left_out.chooses(step, tensors) and False,
        "measured for moved:, saved": lambda step: saved.chooses(step, tensors),
        "measured for budget:, saved": lambda step: along.chooses(step, tensors),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    step = 0
    for _ in range(saves):
        for name, kind in kinds.items():
            step += 1
            with torch.no_grad():
                for tensor in state.tensors.values():
                    tensor.add_(1e-4 * torch.randn_like(tensor))
            seconds[name].append(step_of(kind, step))
    disk.close()
    ordinary = statistics.median(seconds["an ordinary save"])
    return [
        {
            "step": name,
            "CPU ms (median)": f"{statistics.median(each) * 1e3:.1f}",
            "of an ordinary save": f"{statistics.median(each) / ordinary:.2f}",
        }
        for name, each in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--saves", type=int, default=20)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with scratch() as directory:
        rows = costs(directory, arguments.saves)
    report(f"a LoRA of rank 32, 9.6 MB, one thread of a CPU, torch {torch.__version__}", rows, arguments.json)


if __name__ == "__main__":
    main()
