"""The throughput of a training that saves at every step, compared with saving nothing and with the stock Trainer.

    python -m benchmarks.every_step [--blocks 15] [--steps 10] [--json FILE]

Four trainings, each with an offline W&B run: with emtoolkit saving and logging, the same with XXH128 digests (which an
online run uses where the server has them), with the stock Trainer and `WANDB_LOG_MODEL=checkpoint`, and, as the least
that a save can take, with a copy of the weights that a thread writes and hashes (SHA-256). In each of them blocks of
`--steps` steps that all save alternate with blocks that save nothing. The throughput of a block that saves is the mean
time of the block before and the block after, divided by its own time: 1 means no cost. Whole trainings differ by more
than a save costs, because a processor that others use is not equally fast for minutes; neighbours are.

`emtoolkit train` sets `OMP_WAIT_POLICY=passive`; a script of one's own does not.
"""

import argparse
import os
import statistics
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import TrainerCallback

from benchmarks.subject import make_trainer, report, scratch, wandb_run
from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.artifacts import publication
from emtoolkit.storage.thread_priority import DISK, give_way

EMTOOLKIT, XXH128, STOCK = "emtoolkit", "emtoolkit, XXH128", "stock Trainer"
BARE = "a bare copy, write and hash"
# Parts of a write: one of several MB takes ten times as long on some Linux kernels.
_PART = 2**20


@dataclass(frozen=True, slots=True)
class Blocks:
    """`saving` blocks of `steps` steps that save, each between two that do not, and the last step of the training."""

    saving: int
    steps: int

    @property
    def total_steps(self) -> int:
        return (2 * self.saving + 1) * self.steps + 1

    @property
    def saved(self) -> list[int]:
        """The steps that save. What is left to do after such a step is done beside the next one."""
        return [step for step in range(self.total_steps) if step // self.steps % 2 == 1]

    def seconds(self, began: list[float]) -> list[float]:
        """How long each block takes, if step `i + 1` of the training begins at `began[i]`."""
        return [began[i + self.steps] - began[i] for i in range(0, len(began) - self.steps, self.steps)]


class _StepClock(TrainerCallback):
    """Notes when each step begins."""

    def __init__(self) -> None:
        self.began: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began.append(time.perf_counter())


class _StockSaves(TrainerCallback):
    """Lets the Trainer save at `steps`."""

    def __init__(self, steps: list[int]) -> None:
        self._steps = frozenset(steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = state.global_step in self._steps


class _BareSaves(TrainerCallback):
    """Copies what is trained at `steps`; a thread of a low priority writes each copy to `file`, and hashes it."""

    def __init__(self, steps: list[int], file: Path) -> None:
        self._steps, self._file = frozenset(steps), file
        self._trained: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._jobs: SimpleQueue[bool] = SimpleQueue()
        self._thread = Thread(target=self._work)

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        self._trained = [weights.detach() for weights in model.parameters() if weights.requires_grad]
        self._copies = [torch.empty_like(weights) for weights in self._trained]
        self._thread.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self._steps:
            torch._foreach_copy_(self._copies, self._trained)
            self._jobs.put(True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._jobs.put(False)
        self._thread.join()

    def _work(self) -> None:
        give_way(DISK)
        content = [memoryview(copy.numpy()).cast("B") for copy in self._copies]
        while self._jobs.get():
            digest = sha256()
            with self._file.open("wb", buffering=_PART) as file:
                for part in content:
                    file.write(part)
                    digest.update(part)
                file.flush()
                os.fsync(file.fileno())
            self._file.with_suffix(".sha256").write_text(digest.hexdigest())
            self._file.unlink()


def seconds_of_blocks(saving: str, blocks: Blocks) -> tuple[list[float], float]:
    """The seconds of each block of one training, and those that the training thread waited for earlier saves."""
    os.environ["WANDB_LOG_MODEL"] = "checkpoint" if saving == STOCK else "false"
    clock = _StepClock()
    saves: TrainerCallback
    with scratch() as directory, wandb_run(directory) as _, _digests(saving):
        if saving == STOCK:
            saves = _StockSaves(blocks.saved)
        elif saving == BARE:
            saves = _BareSaves(blocks.saved, directory / "weights")
        else:
            saves = ScheduledCheckpointCallback(blocks.saved, resume_every="never")
        trainer = make_trainer(directory / "out", blocks.total_steps, [saves, clock], report_to=["wandb"])
        trainer.train()
    return blocks.seconds(clock.began), saves.waited_seconds if isinstance(saves, ScheduledCheckpointCallback) else 0.0


def _digests(saving: str) -> AbstractContextManager[Any]:
    """Inside, the artifacts of an offline run have the digests of `saving`."""
    new_artifact = publication.new_artifact

    def with_xxh128(name: str, metadata: Mapping[str, Any], _algorithm: str) -> Any:
        return new_artifact(name, metadata, "XXH128")

    return mock.patch.object(publication, "new_artifact", with_xxh128) if saving == XXH128 else nullcontext()


def throughputs(seconds: list[float]) -> list[float]:
    """The throughput of each block that saves, which are those with an odd index."""
    return [(seconds[i - 1] + seconds[i + 1]) / 2 / seconds[i] for i in range(1, len(seconds) - 1, 2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    blocks = Blocks(arguments.blocks, arguments.steps)
    rows = []
    for saving in (EMTOOLKIT, XXH128, STOCK, BARE):
        seconds, waited = seconds_of_blocks(saving, blocks)
        ratios = throughputs(seconds)
        quarter, _, three_quarters = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "saving at every step": saving,
                "s a step without": f"{statistics.median(seconds[::2]) / blocks.steps:.3f}",
                "throughput (median)": f"{statistics.median(ratios):.3f}",
                "quartiles": f"{quarter:.3f}-{three_quarters:.3f}",
                "lowest": f"{min(ratios):.3f}",
                "highest": f"{max(ratios):.3f}",
                "waited, ms a save": f"{waited / len(blocks.saved) * 1e3:.1f}",
            }
        )
        print(rows[-1], flush=True)
    report("Saving at every step, 26M-parameter Qwen2, LoRA r=32 on all projections", rows, arguments.json)


if __name__ == "__main__":
    main()
