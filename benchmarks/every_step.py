"""The throughput of a training that saves at every step, compared with saving nothing and with the stock Trainer.

    python -m benchmarks.every_step [--pairs 5] [--steps 40] [--json FILE]

Three trainings alternate in one process, each with an offline W&B run: without saving, with emtoolkit saving and
logging every step, and with `save_steps=1` and `WANDB_LOG_MODEL=checkpoint`. The time is that of `Trainer.train()`,
including the wait for the disk at its end. The throughput of a pair is the time without saving divided by the time with
saving: 1 means no cost.
"""

import argparse
import os
import statistics
import time
from typing import Any

from benchmarks.subject import make_trainer, report, scratch, wandb_run
from emtoolkit import ScheduledCheckpointCallback


def seconds_of(saving: str, steps: int) -> tuple[float, float]:
    """The seconds of one training, and the seconds that the training thread waited for earlier saves."""
    os.environ["WANDB_LOG_MODEL"] = "checkpoint" if saving == "stock" else "false"
    callback = ScheduledCheckpointCallback("every:1", resume_every="never")
    stock: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1} if saving == "stock" else {}
    with scratch() as directory, wandb_run(directory) as _:
        callbacks = [callback] if saving == "emtoolkit" else []
        trainer = make_trainer(directory / "out", steps, callbacks, report_to=["wandb"], **stock)
        began = time.perf_counter()
        trainer.train()
        return time.perf_counter() - began, callback.waited_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"nothing": [], "emtoolkit": [], "stock": []}
    waited = []
    for number in range(arguments.pairs):
        for saving, times in seconds.items():
            took, wait = seconds_of(saving, arguments.steps)
            times.append(took)
            if saving == "emtoolkit":
                waited.append(wait)
        print(f"pair {number + 1} of {arguments.pairs}:", {k: round(v[-1], 2) for k, v in seconds.items()}, flush=True)
    rows = []
    for saving, times in seconds.items():
        ratios = [without / with_ for without, with_ in zip(seconds["nothing"], times, strict=True)]
        rows.append(
            {
                "saving at every step": saving,
                "s a step (median)": f"{statistics.median(times) / arguments.steps:.3f}",
                "throughput (median of pairs)": f"{statistics.median(ratios):.2f}",
                "lowest": f"{min(ratios):.2f}",
                "highest": f"{max(ratios):.2f}",
                "waited, ms a step": f"{statistics.median(waited) / arguments.steps * 1e3:.1f}"
                if saving == "emtoolkit"
                else "",
            }
        )
    report("Saving at every step, 26M-parameter Qwen2, LoRA r=32 on all projections", rows, arguments.json)


if __name__ == "__main__":
    main()
