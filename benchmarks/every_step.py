"""The throughput of a training that saves at every step, compared with saving nothing and with the stock Trainer.

    python -m benchmarks.every_step [--pairs 5] [--steps 40] [--json FILE]

Four trainings alternate in one process, each with an offline W&B run: without saving, with emtoolkit saving and logging
every step, the same with XXH128 digests (which an online run uses where the server has them), and with `save_steps=1`
and `WANDB_LOG_MODEL=checkpoint`. The time is that of `Trainer.train()`, including the wait for the disk at its end. The
throughput of a pair is the time without saving divided by the time with saving: 1 means no cost.
"""

import argparse
import os
import statistics
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

from benchmarks.subject import make_trainer, report, scratch, wandb_run
from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.artifacts import publication

EMTOOLKIT, XXH128 = "emtoolkit", "emtoolkit, XXH128"


def seconds_of(saving: str, steps: int) -> tuple[float, float]:
    """The seconds of one training, and the seconds that the training thread waited for earlier saves."""
    os.environ["WANDB_LOG_MODEL"] = "checkpoint" if saving == "stock" else "false"
    ours = saving in (EMTOOLKIT, XXH128)
    callbacks = [ScheduledCheckpointCallback("every:1", resume_every="never")] if ours else []
    stock: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1} if saving == "stock" else {}
    with scratch() as directory, wandb_run(directory) as _, _digests(saving):
        trainer = make_trainer(directory / "out", steps, callbacks, report_to=["wandb"], **stock)
        began = time.perf_counter()
        trainer.train()
        return time.perf_counter() - began, sum(callback.waited_seconds for callback in callbacks)


def _digests(saving: str) -> AbstractContextManager[Any]:
    """Inside, the artifacts of an offline run have the digests of `saving`."""
    new_artifact = publication.new_artifact

    def with_xxh128(name: str, metadata: Mapping[str, Any], _algorithm: str) -> Any:
        return new_artifact(name, metadata, "XXH128")

    return mock.patch.object(publication, "new_artifact", with_xxh128) if saving == XXH128 else nullcontext()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"nothing": [], EMTOOLKIT: [], XXH128: [], "stock": []}
    waited: dict[str, list[float]] = {name: [] for name in seconds}
    for number in range(arguments.pairs):
        for saving, times in seconds.items():
            took, wait = seconds_of(saving, arguments.steps)
            times.append(took)
            waited[saving].append(wait)
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
                "waited, ms a step": f"{statistics.median(waited[saving]) / arguments.steps * 1e3:.1f}"
                if saving in (EMTOOLKIT, XXH128)
                else "",
            }
        )
    report("Saving at every step, 26M-parameter Qwen2, LoRA r=32 on all projections", rows, arguments.json)


if __name__ == "__main__":
    main()
