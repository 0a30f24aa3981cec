"""The cost of one checkpoint: stall of the training thread and bytes on disk, compared with the stock Trainer.

    python -m benchmarks.checkpoint_cost [--rounds 5] [--json FILE]

The stock Trainer runs with `save_strategy="steps"` and `WANDB_LOG_MODEL=checkpoint`. It, emtoolkit and emtoolkit with
`overlap=True` alternate in one process, offline, and each saves every 5th of 30 steps. The last step, which is never
copied beside the training, is left out for all. Of emtoolkit two figures are given: the stall between the end of the
step and the next step, and all that the training thread loses, with the callbacks when the next step begins and before
its update. The lower bound of a copy in the training thread is a bare `torch._foreach_copy_` of the same tensors into
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

from benchmarks.subject import TimedTrainer, bytes_below, lora_model, make_trainer, report, scratch, wandb_run
from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.saving.adapter_state import model_state

STEPS, EVERY = 30, 5
SAVED = list(range(EVERY, STEPS, EVERY))
CHECKPOINTS = STEPS // EVERY


class BareCopy(TrainerCallback):
    """Times a copy of the trainable tensors at steps without a save."""

    changes_weights = False

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.live = list(model_state(kwargs["model"]).tensors.values())
        self.kept = [torch.empty_like(t, device="cpu", pin_memory=t.is_cuda) for t in self.live]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % EVERY == 2:
            began = time.perf_counter()
            with torch.no_grad():
                torch._foreach_copy_(self.kept, self.live, non_blocking=True)
            self.seconds.append(time.perf_counter() - began)


def stock(model: Any) -> tuple[TimedTrainer, float]:
    """A training that the stock Trainer saves, and bytes on disk per checkpoint."""
    os.environ["WANDB_LOG_MODEL"] = "checkpoint"
    with scratch() as directory, wandb_run(directory) as _:
        own = {"save_strategy": "steps", "save_steps": EVERY}
        trainer = make_trainer(directory / "out", STEPS, model=model, report_to=["wandb"], **own)
        trainer.train()
        return trainer, bytes_below(directory) / CHECKPOINTS


def ours(model: Any, *, overlap: bool) -> tuple[TimedTrainer, float, list[float]]:
    """A training that emtoolkit saves, bytes on disk per checkpoint, and seconds of the bare copies."""
    os.environ["WANDB_LOG_MODEL"] = "false"
    with scratch() as directory, wandb_run(directory) as _:
        bare = BareCopy()
        callback = ScheduledCheckpointCallback(f"0,every:{EVERY}", resume_every="never", overlap=overlap)
        trainer = make_trainer(directory / "out", STEPS, [callback, bare], model=model, report_to=["wandb"])
        trainer.train()
        return trainer, bytes_below(directory) / (CHECKPOINTS + 1), bare.seconds


def compare(title: str, make_model: Callable[[], Any], description: str) -> None:
    """Measure all on models from `make_model`, as the command line asks, and print the report."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    names = {
        "stock": "stock Trainer, W&B checkpoints",
        "ours": "emtoolkit, after the step",
        "ours in all": "emtoolkit, in all",
        "beside": "emtoolkit with overlap, after the step",
        "beside in all": "emtoolkit with overlap, in all",
        "bare": "bare copy",
    }
    stalls: dict[str, list[float]] = {name: [] for name in names}
    disk: dict[str, list[float]] = {}
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
        trainer, used = stock(make_model())
        stalls["stock"] += trainer.stall(SAVED)
        disk.setdefault("stock", []).append(used)
        for name, overlap in (("ours", False), ("beside", True)):
            trainer, used, bare = ours(make_model(), overlap=overlap)
            after, later = trainer.stall(SAVED), trainer.stall_later(SAVED)
            stalls[name] += after
            stalls[f"{name} in all"] += [sum(pair) for pair in zip(after, later, strict=True)]
            stalls["bare"] += bare
            disk.setdefault(name, []).append(used)
    report(title, [*_rows(names, stalls, disk), *_ratios(stalls)], arguments.json)


def _rows(names: dict[str, str], stalls: dict[str, list[float]], disk: dict[str, list[float]]) -> list[dict[str, str]]:
    return [
        {
            "saving": title,
            "stall, ms (median)": f"{statistics.median(stalls[name]) * 1e3:.3f}",
            "worst": f"{max(stalls[name]) * 1e3:.3f}",
            "MB on disk": f"{statistics.median(disk[name]) / 1e6:.1f}" if name in disk else "",
        }
        for name, title in names.items()
    ]


def _ratios(stalls: dict[str, list[float]]) -> list[dict[str, str]]:
    middle = {name: statistics.median(values) for name, values in stalls.items()}
    pairs = [("stock", "ours"), ("stock", "ours in all"), ("stock", "beside in all"), ("ours", "bare")]
    return [
        {
            "saving": f"{above} / {below}",
            "stall, ms (median)": f"{middle[above] / middle[below]:.{1 if below == 'bare' else 0}f} x",
            "worst": "",
            "MB on disk": "",
        }
        for above, below in pairs
    ]


if __name__ == "__main__":
    compare(
        "Cost of one checkpoint, 26M-parameter Qwen2, LoRA r=32 on all projections",
        lora_model,
        __doc__.splitlines()[0],
    )
