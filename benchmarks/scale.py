"""The growth of the cost of saving with the number of checkpoints, 10 to 1,000, and the adapter's size, 1 to 200 MB.

    python -m benchmarks.scale [--json FILE]

A training without saving, emtoolkit, and the stock Trainer with `WANDB_LOG_MODEL=checkpoint` alternate, offline, each
in a fresh process. The stall is the median over the last ten saves of a training. Start-up is the time of
`on_train_begin` in a directory that already holds the checkpoints. Memory is the rise of the peak resident set over the
training without saving, in copies of the adapter.
"""

import argparse
import multiprocessing
import os
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks.subject import lora_model, make_trainer, report, scratch, wandb_run
from emtoolkit import ScheduledCheckpointCallback

MAX_IN_FLIGHT = 2
# Every other step, so that the steps between show the cost of a step without a save.
EVERY = 2
# LoRA ranks, which decide the size of the adapter on all projections of the model.
COUNTS, RANK_OF_COUNTS = (10, 100, 1000), 4
RANKS = (4, 32, 160, 667)
SAVES_OF_RANKS = 10


@dataclass(frozen=True)
class Cost:
    """One training: the late stalls and the start-up in seconds, peak memory in bytes, all waits in seconds."""

    stall: float
    start_up: float
    peak: int
    waited: float


class StopAtOnce(TrainerCallback):
    """Ends a training after its first step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


def peak_memory() -> int:
    """The peak resident set of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    if (found := re.search(r"VmHWM:\s+(\d+) kB", status)) is None:
        raise SystemExit("VmHWM is not in /proc/self/status; this benchmark needs Linux")
    return int(found[1]) * 1024


def cost_of(saving: str, saves: int, rank: int) -> Cost:
    """The cost of one training that saves `saves` times, by `nothing`, `emtoolkit` or `stock`."""
    os.environ["WANDB_LOG_MODEL"] = "checkpoint" if saving == "stock" else "false"
    steps, small = saves * EVERY, {"per_device_train_batch_size": 1}
    stock: dict[str, Any] = {"save_strategy": "steps", "save_steps": EVERY} if saving == "stock" else {}
    start_up = 0.0
    with scratch() as directory, wandb_run(directory) as _:
        options: dict[str, Any] = {"resume_every": "never", "max_in_flight": MAX_IN_FLIGHT}
        ours = [ScheduledCheckpointCallback(f"every:{EVERY}", **options)] if saving == "emtoolkit" else []
        model = lora_model(rank)
        trainer = make_trainer(directory / "out", steps, ours, model=model, report_to=["wandb"], **small, **stock)
        trainer.train()
        peak = peak_memory()
        saved = list(range(EVERY, steps + 1, EVERY))
        stall = statistics.median(trainer.stall(saved)[-10:]) if saving != "nothing" else 0.0
        if saving == "emtoolkit":
            # The directory holds the same trajectory, so the callback checks all checkpoints.
            again = ScheduledCheckpointCallback(f"every:{EVERY}", publish=False, **options)
            began = 0.0
            inner = again.on_train_begin

            def timed(*args: Any, **kwargs: Any) -> None:
                nonlocal began, start_up
                began = time.perf_counter()
                inner(*args, **kwargs)
                start_up = time.perf_counter() - began

            again.on_train_begin = timed  # type: ignore[method-assign]
            make_trainer(directory / "out", steps, [again, StopAtOnce()], model=lora_model(rank), **small).train()
    return Cost(stall, start_up, peak, sum(callback.waited_seconds for callback in ours))


def in_a_fresh_process(saving: str, saves: int, rank: int) -> Cost:
    """`cost_of` in a fresh process, without memory or imports of earlier trainings."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(cost_of, (saving, saves, rank))


def row_of(saves: int, rank: int) -> dict[str, Any]:
    """One row of the table: all three trainings in turn."""
    nothing, ours, stock = (in_a_fresh_process(saving, saves, rank) for saving in ("nothing", "emtoolkit", "stock"))
    size = sum(p.nbytes for p in lora_model(rank).parameters() if p.requires_grad)
    print(f"{saves} checkpoints of {size / 1e6:.1f} MB are done", flush=True)
    return {
        "checkpoints": saves,
        "adapter, MB": f"{size / 1e6:.1f}",
        "stall, ms": f"{ours.stall * 1e3:.2f}",
        "stock": f"{stock.stall * 1e3:.0f}",
        "ratio": f"{stock.stall / ours.stall:.0f} x",
        "ms a MB": f"{ours.stall * 1e3 / (size / 1e6):.3f}",
        "waits, ms a save": f"{ours.waited / saves * 1e3:.1f}",
        "start-up, ms": f"{ours.start_up * 1e3:.0f}",
        "memory, copies": f"{(ours.peak - nothing.peak) / size:.1f}",
        "stock memory": f"{(stock.peak - nothing.peak) / size:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json")
    arguments = parser.parse_args()
    rows = [row_of(saves, RANK_OF_COUNTS) for saves in COUNTS] + [row_of(SAVES_OF_RANKS, rank) for rank in RANKS[1:]]
    title = f"Growth of the cost, 26M-parameter Qwen2, LoRA on all projections, max_in_flight {MAX_IN_FLIGHT}"
    report(title, rows, arguments.json)


if __name__ == "__main__":
    main()
