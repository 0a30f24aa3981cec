"""The cost of a failing W&B server, and what is lost: fault by fault, each in a run of `emtoolkit train`.

    python -m benchmarks.faults [--publish-timeout SECONDS] [--only TEXT] [--json FILE]

The server is the loopback server of the tests. After each run the fault is removed and `emtoolkit sync` runs twice. A
26M-parameter model with LoRA r=32 is trained for 45 steps and saved at 10 of them, 9.6 MB each. `training` is the time
from the first step to the last, divided by the median of runs without a fault, which alternate with the others. `after`
is the time from the last save to the end of the process. About 25 minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.manifest import MANIFEST
from emtoolkit.checkpoints.publications import Publications
from tests.wandb_server import Fault, WandbServer

STEPS = (0, 5, 10, 15, 20, 25, 30, 35, 40, 45)
# This many requests have been sent after about a third of the training.
_IN_THE_MIDDLE = 40

FAULTS: dict[str, list[Fault] | None] = {
    "no connection": None,
    "nothing is answered": [Fault("*", "hang")],
    "everything is 500": [Fault("*", 500)],
    "key refused (401)": [Fault("*", 401)],
    "run refused (403)": [Fault("UpsertBucket", 403)],
    "connections drop, in the middle": [Fault("*", "drop", after=_IN_THE_MIDDLE)],
    "nothing is answered, in the middle": [Fault("*", "hang", after=_IN_THE_MIDDLE)],
    "everything is 500, in the middle": [Fault("*", 500, after=_IN_THE_MIDDLE)],
    "everything is 429, in the middle": [Fault("*", 429, after=_IN_THE_MIDDLE)],
    "key refused, in the middle": [Fault("*", 401, after=_IN_THE_MIDDLE)],
    "new artifacts hang": [Fault("CreateArtifact", "hang")],
    "uploads hang": [Fault("PUT", "hang")],
    "uploads are cut in half": [Fault("PUT", "cut")],
    "commits refused (403)": [Fault("CommitArtifact", 403)],
    "one commit's answer is lost": [Fault("CommitArtifact", "lose_answer", times=1)],
    "every commit's answer is lost": [Fault("CommitArtifact", "lose_answer")],
    "history refused (404)": [Fault("file_stream", 404)],
    "history hangs": [Fault("file_stream", "hang")],
}


@dataclass(frozen=True, slots=True)
class Outcome:
    exit_code: int
    training_seconds: float
    seconds_after: float
    seconds: float
    warnings: int
    lost: int
    published: int
    after_sync: int
    duplicates: int
    second_sync_idle: bool


def write_world(directory: Path) -> Path:
    """Write the tests' data with a larger model; returns the path of the config."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from tests import tiny

    tiny.write_world(directory)
    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    vocabulary = len(AutoTokenizer.from_pretrained(directory / "model"))
    Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, **shape, **heads)).save_pretrained(directory / "model")
    projections = "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"
    text = tiny.config_text(directory, "schedule: '0,every:5'").replace("r: 2,", "r: 32,")
    text = text.replace("[q_proj, v_proj]", projections).replace("batch_size: 4,", "batch_size: 4, epochs: 5,")
    (directory / "run.yaml").write_text(text)
    return directory / "run.yaml"


def emtoolkit(server: WandbServer, *words: object) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **server.environment()}
    command = [sys.executable, "-m", "emtoolkit", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def measure(config: Path, directory: Path, faults: list[Fault] | None, publish_timeout: float) -> Outcome:
    """One training under `faults` (None refuses connections), and then two calls of sync without a fault."""
    with WandbServer.start(directory / "server") as server:
        if faults is None:
            server.refuse_connections()
        for fault in faults or []:
            server.faults.add(Fault(fault.on, fault.kind, fault.times, fault.after))
        out = directory / "out"
        began = time.time()
        run = emtoolkit(
            server, "train", config, "--output-dir", out, "--set", f"wandb.publish_timeout={publish_timeout}"
        )
        ended = time.time()
        complete = {info.step for info in list_checkpoints(out, rehash=True) if info.complete}
        published = len(Publications.read(out).published)
        server.faults.clear()
        server.accept_connections()
        emtoolkit(server, "sync", out)
        second = json.loads(emtoolkit(server, "sync", out, "--json").stdout)[0]
        collections = server.store.project(server.entity, "emtoolkit").collections.values()
        versions = [version for collection in collections for version in collection.versions]
        last = out / checkpoint_name(STEPS[-1]) / MANIFEST
        return Outcome(
            exit_code=run.returncode,
            training_seconds=Publications.read(out).metadata[STEPS[-1]]["seconds_since_start"],
            seconds_after=ended - last.stat().st_mtime,
            seconds=ended - began,
            # The progress bar may precede the warning on the same line.
            warnings=sum("emtoolkit: " in line and "'emtoolkit sync" in line for line in run.stderr.splitlines()),
            lost=len(set(STEPS) - complete),
            published=published,
            after_sync=len(second["on_wandb"]),
            duplicates=len(versions) - len({version.digest for version in versions}),
            second_sync_idle=not (second["published"] or second["logs"] or second["problems"]),
        )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--publish-timeout", type=float, default=60.0)
    parser.add_argument("--only", default="", help="faults that have this text in their name")
    parser.add_argument("--json")
    arguments = parser.parse_args(words)
    from benchmarks.subject import report, scratch

    chosen = [name for name in FAULTS if arguments.only in name]
    outcomes: dict[str, Outcome] = {}
    healthy: list[Outcome] = []
    with scratch() as directory:
        config = write_world(directory / "world")
        for number, name in enumerate(chosen):
            if number % 4 == 0:
                healthy.append(measure(config, directory / f"healthy-{number}", [], arguments.publish_timeout))
            outcomes[name] = measure(config, directory / str(number), FAULTS[name], arguments.publish_timeout)
            print(f"{name}: {outcomes[name]}", flush=True)
    usual = statistics.median(each.training_seconds for each in healthy)
    rows = [_row("none (the healthiest)", min(healthy, key=lambda each: each.training_seconds), usual)]
    rows += [_row("none (the slowest)", max(healthy, key=lambda each: each.training_seconds), usual)]
    rows += [_row(name, outcome, usual) for name, outcome in outcomes.items()]
    report(f"Faults of the W&B server, publish_timeout {arguments.publish_timeout:g} s", rows, arguments.json)


def _row(name: str, outcome: Outcome, usual: float) -> dict[str, Any]:
    return {
        "fault": name,
        "exit code": outcome.exit_code,
        "warnings": outcome.warnings,
        "training": f"{outcome.training_seconds / usual:.2f}",
        "seconds in all": f"{outcome.seconds:.1f}",
        "after": f"{outcome.seconds_after:.1f}",
        "lost": outcome.lost,
        "on W&B at the end": outcome.published,
        "after sync": outcome.after_sync,
        "duplicates": outcome.duplicates,
        "second sync idle": "yes" if outcome.second_sync_idle else "NO",
    }


if __name__ == "__main__":
    main()
