"""The cost of one checkpoint: stall of the training thread and bytes on disk, compared with the stock Trainer.

    python -m benchmarks.checkpoint_cost [--rounds 5] [--json FILE]

The stock Trainer runs with `save_strategy="steps"` and `WANDB_LOG_MODEL=checkpoint`. The two alternate in one process,
offline, and each saves every 5th of 25 steps. The lower bound is a bare `torch._foreach_copy_` of the same tensors into
reused buffers, at steps of the same training without a save.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.subject import bytes_below, lora_model, make_trainer, report, scratch, wandb_run
from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.saving.adapter_state import model_state

STEPS, EVERY = 25, 5
SAVED = list(range(EVERY, STEPS + 1, EVERY))


class BareCopy(TrainerCallback):
    """Times a copy of the trainable tensors at steps without a save."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.live = list(model_state(kwargs["model"]).tensors.values())
        self.kept = [torch.empty_like(tensor) for tensor in self.live]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % EVERY == 2:
            began = time.perf_counter()
            with torch.no_grad():
                torch._foreach_copy_(self.kept, self.live)
            self.seconds.append(time.perf_counter() - began)


def stock(model: Any) -> tuple[list[float], float]:
    """Stalls of the stock Trainer in seconds, and bytes on disk per checkpoint."""
    os.environ["WANDB_LOG_MODEL"] = "checkpoint"
    with scratch() as directory, wandb_run(directory) as _:
        own = {"save_strategy": "steps", "save_steps": EVERY}
        trainer = make_trainer(directory / "out", STEPS, model=model, report_to=["wandb"], **own)
        trainer.train()
        used = bytes_below(directory)
    return trainer.stall(SAVED), used / len(SAVED)


def ours(model: Any) -> tuple[list[float], float, list[float]]:
    """Stalls of emtoolkit in seconds, bytes on disk per checkpoint, and seconds of the bare copies."""
    os.environ["WANDB_LOG_MODEL"] = "false"
    with scratch() as directory, wandb_run(directory) as _:
        bare = BareCopy()
        callback = ScheduledCheckpointCallback(f"every:{EVERY}", resume_every="never")
        trainer = make_trainer(directory / "out", STEPS, [callback, bare], model=model, report_to=["wandb"])
        trainer.train()
        used = bytes_below(directory)
    return trainer.stall(SAVED), used / len(SAVED), bare.seconds


def compare(title: str, make_model: Callable[[], Any], description: str) -> None:
    """Measure both on models from `make_model`, as the command line asks, and print the report."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    stalls: dict[str, list[float]] = {"stock": [], "ours": [], "bare": []}
    disk: dict[str, list[float]] = {"stock": [], "ours": []}
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
        seconds, used = stock(make_model())
        stalls["stock"] += seconds
        disk["stock"].append(used)
        seconds, used, bare = ours(make_model())
        stalls["ours"] += seconds
        disk["ours"].append(used)
        stalls["bare"] += bare
    middle = {name: statistics.median(values) for name, values in stalls.items()}
    used_by = {name: statistics.median(values) for name, values in disk.items()}
    rows = [
        {
            "saving": name,
            "stall, ms (median)": f"{middle[key] * 1e3:.2f}",
            "worst": f"{max(stalls[key]) * 1e3:.2f}",
            "MB on disk": f"{used_by[key] / 1e6:.1f}" if key in used_by else "",
        }
        for name, key in (("stock Trainer, W&B checkpoints", "stock"), ("emtoolkit", "ours"), ("bare copy", "bare"))
    ]
    rows.append(
        {
            "saving": "stock / emtoolkit",
            "stall, ms (median)": f"{middle['stock'] / middle['ours']:.0f} x",
            "worst": "",
            "MB on disk": f"{used_by['stock'] / used_by['ours']:.1f} x",
        }
    )
    rows.append(
        {
            "saving": "emtoolkit / bare copy",
            "stall, ms (median)": f"{middle['ours'] / middle['bare']:.1f} x",
            "worst": "",
            "MB on disk": "",
        }
    )
    report(title, rows, arguments.json)


if __name__ == "__main__":
    compare(
        "Cost of one checkpoint, 26M-parameter Qwen2, LoRA r=32 on all projections",
        lora_model,
        __doc__.splitlines()[0],
    )
