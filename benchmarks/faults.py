"""The cost of a failing W&B server, and what is lost: fault by fault, each in a run of `emtoolkit train`.

    python -m benchmarks.faults [--publish-timeout SECONDS] [--only TEXT] [--json FILE]

The server is the loopback server of the tests. After each run the fault is removed and `emtoolkit sync` runs twice. A
26M-parameter model with LoRA r=32 is trained for 45 steps and saved at 10 of them, 9.6 MB each. `training` is the time
from the first step to the last, divided by the median of runs without a fault, which alternate with the others. `after`
is the time from the last save to the end of the process. About 30 minutes.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.manifest import MANIFEST
from emtoolkit.checkpoints.publications import Publications
from tests.wandb_server import Fault, WandbServer

STEPS = (0, 5, 10, 15, 20, 25, 30, 35, 40, 45)
# This many requests have been sent after about a third of the training.
_IN_THE_MIDDLE = 40


@dataclass(frozen=True, slots=True)
class Training:
    """The `emtoolkit train` that is measured: its process, its directory, and the server that it uses."""

    process: "subprocess.Popen[str]"
    directory: Path
    server: WandbServer

    def wait_for(self, happens: Callable[[], bool]) -> None:
        """Wait until something happens, or the training has ended."""
        while self.process.poll() is None and not happens():
            time.sleep(0.05)

    def wait_for_step(self, step: int) -> None:
        """Wait until the checkpoint of `step` is on disk."""
        self.wait_for((self.directory / checkpoint_name(step)).is_dir)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What fails: the server's answers, or its connections, the environment, or what `during` does to the training."""

    faults: Sequence[Fault] = ()
    refuses: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    during: Callable[[Training], None] = lambda training: None


def kill_client(training: Training) -> None:
    """Kill wandb-core in the middle, as the kernel does for want of memory."""
    training.wait_for_step(STEPS[3])
    for process in psutil.Process(training.process.pid).children(recursive=True):
        if process.name() == "wandb-core":
            process.kill()


def accept_in_the_middle(training: Training) -> None:
    training.wait_for_step(STEPS[4])
    training.server.accept_connections()


def interrupt_the_wait(training: Training) -> None:
    """Ctrl-C while W&B is waited for after the last step."""
    training.wait_for_step(STEPS[-1])
    time.sleep(2.0)
    training.process.send_signal(signal.SIGINT)


NOWHERE = {"WANDB_DIR": "/proc/nowhere"}

FAULTS: dict[str, Scenario] = {
    "no connection": Scenario(refuses=True),
    "nothing is answered": Scenario([Fault("*", "hang")]),
    "everything is 500": Scenario([Fault("*", 500)]),
    "key refused (401)": Scenario([Fault("*", 401)]),
    "run refused (403)": Scenario([Fault("UpsertBucket", 403)]),
    "connections drop, in the middle": Scenario([Fault("*", "drop", after=_IN_THE_MIDDLE)]),
    "nothing is answered, in the middle": Scenario([Fault("*", "hang", after=_IN_THE_MIDDLE)]),
    "everything is 500, in the middle": Scenario([Fault("*", 500, after=_IN_THE_MIDDLE)]),
    "everything is 429, in the middle": Scenario([Fault("*", 429, after=_IN_THE_MIDDLE)]),
    "key refused, in the middle": Scenario([Fault("*", 401, after=_IN_THE_MIDDLE)]),
    "new artifacts hang": Scenario([Fault("CreateArtifact", "hang")]),
    "uploads hang": Scenario([Fault("PUT", "hang")]),
    "uploads are cut in half": Scenario([Fault("PUT", "cut")]),
    "commits refused (403)": Scenario([Fault("CommitArtifact", 403)]),
    "one commit's answer is lost": Scenario([Fault("CommitArtifact", "lose_answer", times=1)]),
    "every commit's answer is lost": Scenario([Fault("CommitArtifact", "lose_answer")]),
    "history refused (404)": Scenario([Fault("file_stream", 404)]),
    "history hangs": Scenario([Fault("file_stream", "hang")]),
    "one answer is an HTML page": Scenario([Fault("graphql", "html", times=1, after=_IN_THE_MIDDLE // 2)]),
    "one answer is cut": Scenario([Fault("graphql", "half_answer", times=1, after=_IN_THE_MIDDLE // 2)]),
    "W&B answers again in the middle": Scenario(refuses=True, during=accept_in_the_middle),
    "wandb-core is killed": Scenario(during=kill_client),
    "wandb-core is killed, offline": Scenario(environment={"WANDB_MODE": "offline"}, during=kill_client),
    "WANDB_DIR cannot be written": Scenario(environment=NOWHERE),
    "Ctrl-C while uploads hang": Scenario([Fault("PUT", "hang")], during=interrupt_the_wait),
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


def start(server: WandbServer, environment: Mapping[str, str], *words: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "emtoolkit", *map(str, words)]
    variables = {**os.environ, **server.environment(), **environment}
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def emtoolkit(server: WandbServer, *words: object) -> str:
    """The standard output of a command."""
    return start(server, {}, *words).communicate()[0]


def measure(config: Path, directory: Path, scenario: Scenario, publish_timeout: float) -> Outcome:
    """One training under `scenario`, and then two calls of sync without a fault."""
    with WandbServer.start(directory / "server") as server:
        if scenario.refuses:
            server.refuse_connections()
        for fault in scenario.faults:
            server.faults.add(Fault(fault.on, fault.kind, fault.times, fault.after))
        out = directory / "out"
        began = time.time()
        setting = f"wandb.publish_timeout={publish_timeout}"
        process = start(server, scenario.environment, "train", config, "--output-dir", out, "--set", setting)
        acting = threading.Thread(target=scenario.during, args=(Training(process, out, server),))
        acting.start()
        told = process.communicate()[1]
        acting.join()
        ended = time.time()
        complete = {info.step for info in list_checkpoints(out, rehash=True) if info.complete}
        published = len(Publications.read(out).published)
        server.faults.clear()
        server.accept_connections()
        emtoolkit(server, "sync", out)
        second = json.loads(emtoolkit(server, "sync", out, "--json"))[0]
        collections = server.store.project(server.entity, "emtoolkit").collections.values()
        versions = [version for collection in collections for version in collection.versions]
        last = out / checkpoint_name(STEPS[-1]) / MANIFEST
        return Outcome(
            exit_code=process.returncode,
            training_seconds=Publications.read(out).metadata[STEPS[-1]]["seconds_since_start"],
            seconds_after=ended - last.stat().st_mtime,
            seconds=ended - began,
            # The progress bar may precede the warning on the same line.
            warnings=sum("emtoolkit: " in line and "'emtoolkit sync" in line for line in told.splitlines()),
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
                healthy.append(measure(config, directory / f"healthy-{number}", Scenario(), arguments.publish_timeout))
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
