"""What a resume's comparison costs, how far recomputed steps may differ, and the price of `training.deterministic`.

    python -m benchmarks.resume [--steps 20] [--gigabytes 2] [--json FILE]

Three tables: seconds for hashing checkpoints, which `--resume` does first; the difference at the last step between a
training and the same training under another condition; and the processor seconds of a step with and without
deterministic kernels on one thread, the median of alternating trainings.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM, TrainerCallback

from benchmarks.subject import PROJECTIONS, VOCABULARY, make_trainer, report, scratch
from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.manifest import Manifest, TrajectorySeal
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.saving.recomputed import compare_recomputed
from emtoolkit.training.determinism import deterministic_algorithms

_CHUNK = 2**26


class _Nudge(TrainerCallback):
    """Adds 1e-7 to one weight after the first step, as a sum in another order would."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            with torch.no_grad():
                next(p for p in kwargs["model"].parameters() if p.requires_grad).view(-1)[0] += 1e-7


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def hashing(directory: Path, gigabytes: int) -> dict[str, Any]:
    """The seconds that hashing two checkpoints of `gigabytes` GB in all takes."""
    seal = TrajectorySeal(Identity({}), 1)
    for step in (0, 1):
        path = directory / f"checkpoint-{step}"
        path.mkdir()
        with (path / "model.safetensors").open("wb") as file:
            for _ in range(gigabytes * 10**9 // 2 // _CHUNK):
                file.write(os.urandom(_CHUNK))
        seal.seal(path, step)
    size = sum(info.bytes for info in list_checkpoints(directory))
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        list_checkpoints(directory, rehash=True)
        seconds.append(time.perf_counter() - began)
    return {
        "GB": f"{size / 1e9:.1f}",
        "seconds": f"{min(seconds):.2f}",
        "seconds per GB": f"{min(seconds) * 1e9 / size:.2f}",
    }


def _model(full: bool) -> Any:
    """4 layers of width 256, 4M parameters; a LoRA of rank 32 on all projections unless `full`."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=2, tie_word_embeddings=True, **sizes)
    )
    lora = LoraConfig(r=32, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    return model if full else get_peft_model(model, lora)


def train(directory: Path, steps: int, *callbacks: TrainerCallback, full: bool, **arguments: Any) -> float:
    """The processor seconds of a step of a training that saves its first and its last step."""
    saving = ScheduledCheckpointCallback("0", publish=False, resume_every="never")
    model = _model(full)
    trainer = make_trainer(directory, steps, [saving, *callbacks], model=model, **arguments)
    began = time.process_time()
    trainer.train()
    return (time.process_time() - began) / steps


def differences(home: Path, steps: int) -> list[dict[str, Any]]:
    """How far the last step of a training differs from that of the same training under another condition."""
    rows = []
    for full, kind in ((False, "LoRA"), (True, "all weights")):
        train(home / f"{kind}-0", steps, full=full)
        for condition, threads, callbacks, arguments in (
            ("once more", 2, [], {}),
            ("one thread instead of two", 1, [], {}),
            ("1e-7 added to one weight", 2, [_Nudge()], {}),
            ("another order of the rows", 2, [], {"data_seed": 5}),
        ):
            directory = home / f"{kind}-{condition}"
            with _threads(threads):
                train(directory, steps, *callbacks, full=full, **arguments)
            rows.append({"trained": kind, "condition": condition} | _difference(home / f"{kind}-0", directory, steps))
    return rows


def _difference(kept: Path, again: Path, step: int) -> dict[str, str]:
    path, other = kept / f"checkpoint-{step}", again / f"checkpoint-{step}"
    manifest = Manifest.read(path)
    found = compare_recomputed(path, manifest, other, replace(Manifest.read(other), fingerprint=manifest.fingerprint))
    if found.weights is None:
        return {"largest difference": "none", "share of the way": "none"}
    share = found.weights.share
    return {
        "largest difference": f"{found.weights.largest:.1e}",
        "share of the way": "unknown" if share is None else f"{100 * share:.2g} %",
    }


def price(home: Path, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Processor seconds of a step with and without deterministic kernels, on one thread."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds):
        for enabled in seconds:
            with deterministic_algorithms(enabled), _threads(1):
                seconds[enabled].append(train(home / f"{number}-{enabled}", steps, full=False))
    return [
        {
            "deterministic": str(enabled).lower(),
            "processor seconds of a step": f"{statistics.median(values):.3f}",
            "lowest": f"{min(values):.3f}",
        }
        for enabled, values in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gigabytes", type=int, default=2)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with scratch() as home:
        (home / "hashed").mkdir()
        hashed = [hashing(home / "hashed", arguments.gigabytes)]
        differ = differences(home, arguments.steps)
        priced = price(home / "price", arguments.steps, arguments.rounds)
    report("hashing checkpoints", hashed, None)
    report(f"step {arguments.steps}, computed again", differ, arguments.json)
    report("deterministic kernels", priced, None)


if __name__ == "__main__":
    main()
