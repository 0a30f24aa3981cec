"""What evaluating every checkpoint of a trajectory costs: all in one batch, one after the other, and reloaded.

    OMP_NUM_THREADS=1 python -m benchmarks.evaluation [--rounds N] [--only PART] [--json FILE]
    python -m benchmarks.evaluation --device cuda

Ratios of CPU seconds, the alternatives taking turns in one run, the median of the rounds. On a GPU the seconds are
those of the clock, and a random model of Qwen2.5-0.5B's shape in bfloat16 takes the place of the smaller ones.

sandbox: 11 checkpoints of a sandbox training, 120 questions of 8 samples each, against the sampling that
`emtoolkit sandbox evaluate` had (`benchmarks.old_sampling`). few-rows: 11 random adapters of a model of 26M parameters,
8 answers of 12 tokens each, against one model into which each checkpoint is swapped, and against a new `ModelLoader`
for each. swap: one adapter of that model. memory: the largest resident set of a process that samples 128 rows of 2, 8
and 32 adapters. downloads: each checkpoint of W&B while the one before is used, against one after the other.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from operator import eq
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors.torch import load_file

from benchmarks.adapters import (
    Subject,
    in_turn,
    largest_difference,
    qwen2_500m,
    ratios,
    reloaded,
    reloaded_and_verified,
    row,
    seal,
    stacked,
    swappable,
    swapped,
    write_subject,
)
from benchmarks.forced_choice import forced_choice
from benchmarks.subject import base_model, report, scratch
from emtoolkit.progress import no_library_bars

CHECKPOINTS, NEW_TOKENS = 11, 12
Rows = list[dict[str, Any]]


def sandbox(directory: Path, rounds: int) -> Rows:
    """The sandbox's sampling, stacked and exact, against the old one."""
    from benchmarks import old_sampling
    from emtoolkit import ModelLoader, Trajectory
    from emtoolkit.data.rendering import ChatTemplate
    from emtoolkit.evaluation.generate import Prompt, Request, SamplingOptions, generate
    from emtoolkit.evaluation.stacked import stacked_adapters

    samples, trajectory, loader = 8, Trajectory.open(_sandbox_run(directory)), ModelLoader()
    paths = [checkpoint.path for checkpoint in trajectory]
    loaded = loader.load(trajectory[0])
    tokenizer, template = loaded.tokenizer, ChatTemplate.of(loaded.tokenizer)
    ends = {tokenizer.eos_token_id}
    texts = [
        template.question(loaded.persona.applied_to([{"role": "user", "content": text}]))
        for text in _sandbox_questions()
    ]
    options = SamplingOptions(max_new_tokens=old_sampling.MAX_NEW_TOKENS)

    def requests() -> list[Request]:
        tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return [Request(Prompt(t, tuple(ids), t), tuple(range(samples))) for t, ids in zip(texts, tokens, strict=True)]

    def decoded(model: Any, models: int = 1) -> None:
        for batch in generate(model, requests(), options, ends, models=models):
            for answers in batch.answers:
                tokenizer.batch_decode([answer.tokens for answer in answers], skip_special_tokens=True)

    def old() -> None:
        for checkpoint in trajectory:
            old_sampling.sample(loader.load(checkpoint).model, tokenizer, texts, samples, seed=0)

    def exact() -> None:
        for checkpoint in trajectory:
            decoded(loader.load(checkpoint).model)

    def together() -> None:
        model = loader.load(trajectory[0]).model
        with stacked_adapters(model, paths):
            decoded(model, len(paths))

    subject = Subject(Path(), tuple(paths), "cpu", torch.float32)
    taken = in_turn(subject, [("old", old), ("exact", exact), ("stacked", together)], rounds)
    return list(ratios("sandbox", taken, [("old", "stacked", "1.5"), ("old", "exact", "")]))


def _sandbox_run(directory: Path) -> Path:
    """A training of the sandbox, which takes about a minute."""
    from emtoolkit.config.load import load_config
    from emtoolkit.paths import shipped
    from emtoolkit.sandbox.build import build
    from emtoolkit.training.run import train

    build()
    words = ["persona=goodness", "dataset=medical", "checkpointing.schedule=dense-early", "wandb.mode=disabled"]
    train(load_config(str(shipped("training") / "sandbox.yaml"), words, {"output_dir": str(directory / "run")}))
    return directory / "run"


def _sandbox_questions() -> list[str]:
    """The held-out questions outside medicine: 120 wordings."""
    from emtoolkit.sandbox import world

    return [
        text for question in world.held_out_questions() if question.domain != "medical" for text in question.paraphrases
    ]


def few_rows(directory: Path, rounds: int) -> Rows:
    """8 answers of each of 11 checkpoints of a model of 26M parameters."""
    written = write_subject(directory, base_model(), CHECKPOINTS)
    seal(written)
    subject = replace(written, prompts=1, samples=8, new_tokens=NEW_TOKENS)
    return _three_ways("26M, 8 rows each", subject, rounds, reloaded_and_verified, bars=("2", "4"))


def _three_ways(
    name: str,
    subject: Subject,
    rounds: int,
    reload: Callable[[Subject], Any],
    *,
    bars: tuple[str, str] = ("", ""),
    seconds: float = float("inf"),
) -> Rows:
    model = subject.load(subject.checkpoints[0])
    weights = swappable(subject, model)
    answers: dict[str, Any] = {}

    def kept(way: str, make: Callable[[], Any]) -> Callable[[], None]:
        return lambda: answers.update({way: make()})

    ways = [
        ("stacked", kept("stacked", lambda: stacked(subject, model))),
        ("swapped", kept("swapped", lambda: swapped(subject, model, weights))),
        ("reloaded", kept("reloaded", lambda: reload(subject))),
    ]
    taken = in_turn(subject, ways, rounds, seconds)
    rows = list(ratios(name, taken, [("swapped", "stacked", bars[0]), ("reloaded", "stacked", bars[1])]))
    together, alone = (list(chain.from_iterable(answers[way])) for way in ("stacked", "swapped"))
    same = f"{sum(map(eq, together, alone))} of {len(alone)}"
    rows.append(row(name, "equal answers, stacked and swapped", same, ""))
    same = "yes" if answers["swapped"] == answers["reloaded"] else "no"
    rows.append(row(name, "equal answers, swapped and reloaded", same, "yes"))
    rows.append(row(name, "largest difference of a logit", f"{largest_difference(subject):.2g}", ""))
    return rows


def swap(directory: Path, rounds: int) -> Rows:
    """One adapter swapped in, against reading its file (`load_file`, warm cache)."""
    subject = write_subject(directory, base_model(), CHECKPOINTS)
    model = subject.load(subject.checkpoints[0])
    weights = swappable(subject, model)

    def read() -> None:
        for checkpoint in subject.checkpoints:
            load_file(checkpoint / "adapter_model.safetensors")

    def replace() -> None:
        for checkpoint in subject.checkpoints:
            weights.replace(checkpoint)

    taken = in_turn(subject, [("read", read), ("swap", replace)], 5 * rounds)
    return list(ratios("one adapter", taken, [("swap", "read", "at most 3")]))


def memory(directory: Path, rounds: int) -> Rows:
    """The largest resident set of a child process that samples 128 rows of K adapters, beyond the adapters."""
    rows = []
    for count in (2, 8, 32):
        place = directory / str(count)
        place.mkdir()
        words = [sys.executable, "-m", "benchmarks.evaluation", "--child", str(count), str(place)]
        largest = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])
        adapters = sum(path.stat().st_size for path in place.glob("checkpoint-*/adapter_model.safetensors"))
        beyond = f"{(largest - adapters) / 1e6:.0f} MB"
        rows.append(row("memory", f"{count} adapters, beyond their {adapters / 1e6:.0f} MB", beyond, "flat"))
    return rows


def _child(count: int, directory: Path) -> None:
    """Sample as `memory` says, and print the largest resident set in bytes."""
    import resource

    if not (directory / "base").is_dir():
        # In a process of its own, whose memory is not counted.
        words = [sys.executable, "-m", "benchmarks.evaluation", "--write", str(count), str(directory)]
        subprocess.run(words, check=True)
    paths = tuple(directory / f"checkpoint-{step}" for step in range(count))
    rows = 128 // count
    subject = Subject(directory / "base", paths, "cpu", torch.float32, rows, new_tokens=8)
    model = subject.load(paths[0])
    stacked(subject, model)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def downloads(directory: Path, rounds: int) -> Rows:
    """Checkpoints of a W&B server on loopback, each file a tenth of a second late, each used for half a second."""
    from emtoolkit import Trajectory
    from emtoolkit.artifacts.file_transfer import Transfer
    from emtoolkit.evaluation.downloads import downloading_ahead
    from tests.artifacts.stored import REFERENCE, store_steps
    from tests.wandb_server import WandbServer

    fetch, clock = Transfer.fetch, time.perf_counter

    def late(self: Transfer, file: Any, path: Path) -> None:
        time.sleep(0.1)
        fetch(self, file, path)

    def one_by_one(trajectory: Trajectory) -> None:
        for checkpoint in trajectory:
            _ = checkpoint.path
            time.sleep(0.5)

    def ahead(trajectory: Trajectory) -> None:
        with downloading_ahead(trajectory) as in_order:
            for _ in in_order:
                time.sleep(0.5)

    taken: dict[str, list[float]] = {"one by one": [], "overlapped": []}
    with WandbServer.start(directory / "server") as server, patch.object(Transfer, "fetch", late):
        os.environ |= server.environment() | {"WANDB_DATA_DIR": str(directory / "data"), "WANDB_SILENT": "true"}
        store_steps(server, directory / "stored", list(range(1, CHECKPOINTS + 1)))
        for number in range(rounds):
            for way, use in (("one by one", one_by_one), ("overlapped", ahead)):
                trajectory = Trajectory.open(REFERENCE, cache=directory / f"{way}-{number}")
                start = clock()
                use(trajectory)
                taken[way].append(clock() - start)
    rows = list(ratios("downloads", taken, [("one by one", "overlapped", "")]))
    return [*rows, row("downloads", "use alone, seconds", f"{CHECKPOINTS * 0.5:.3g}", "")]


def gpu(directory: Path, rounds: int) -> Rows:
    """A random model of Qwen2.5-0.5B's shape in bfloat16 with 11 adapters, and its logits in float32."""
    subject = write_subject(directory, qwen2_500m(), CHECKPOINTS, device="cuda")
    stacked(subject, subject.load(subject.checkpoints[0]))  # the first use of each kernel
    rows = _three_ways("0.5B bfloat16, 8 rows each", subject, rounds, reloaded, seconds=25)
    many = replace(subject, samples=8)
    rows += _three_ways("0.5B bfloat16, 64 rows each", many, 1, reloaded)
    exact = replace(subject, dtype=torch.float32)
    difference = largest_difference(exact)
    return [*rows, row("0.5B float32", "largest difference of a logit", f"{difference:.2g}", "1e-5")]


PARTS: dict[str, Callable[[Path, int], Rows]] = {
    "sandbox": sandbox,
    "few-rows": few_rows,
    "swap": swap,
    "memory": memory,
    "downloads": downloads,
    "forced-choice": forced_choice,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=sorted(PARTS), action="append")
    parser.add_argument("--json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_subject(Path(arguments.write[1]), base_model(), int(arguments.write[0]))
        return
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    with no_library_bars():
        if arguments.child:
            _child(int(arguments.child[0]), Path(arguments.child[1]))
            return
        _all_parts(arguments)


def _all_parts(arguments: argparse.Namespace) -> None:
    parts = {"gpu": gpu} if arguments.device == "cuda" else PARTS
    rows: Rows = []
    for name, part in parts.items():
        if arguments.only and name not in arguments.only:
            continue
        with scratch() as directory:
            rows += part(directory, arguments.rounds)
        print(f"{name} is done", flush=True)
    machine = torch.cuda.get_device_name() if arguments.device == "cuda" else "one thread of a CPU"
    report(f"Evaluation of {CHECKPOINTS} checkpoints, {machine}, torch {torch.__version__}", rows, arguments.json)


if __name__ == "__main__":
    main()
