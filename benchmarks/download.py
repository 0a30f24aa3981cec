"""What listing and downloading 300 checkpoints costs, in HTTP requests and seconds, beside a loop over W&B's client.

    python -m benchmarks.download [--rounds N] [--json FILE]

The checkpoints are published by the real client to the tests' W&B server on loopback, so that the seconds are those of
the two clients and a request costs next to nothing; over a real network each request costs a round trip more. Both take
turns, each time in a fresh process and with W&B's cache empty at the first download; imports are not counted.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.wandb_server import WandbServer

CHECKPOINTS = 300
BYTES_OF_WEIGHTS = 100_000
COLLECTION = "benchmark/checkpoints"


def publish(directory: Path) -> None:
    """Log the checkpoints of steps 1 to 300 to one run."""
    import wandb

    from emtoolkit.checkpoints.manifest import TrajectorySeal
    from emtoolkit.checkpoints.trajectory_identity import Identity

    with wandb.init(project="benchmark", dir=directory, settings=wandb.Settings(silent=True)) as run:
        for step in range(1, CHECKPOINTS + 1):
            checkpoint = directory / f"checkpoint-{step}"
            checkpoint.mkdir()
            (checkpoint / "adapter_model.safetensors").write_bytes(os.urandom(BYTES_OF_WEIGHTS))
            (checkpoint / "adapter_config.json").write_text("{}")
            TrajectorySeal(Identity({"seed": 0}), CHECKPOINTS).seal(checkpoint, step)
            artifact = wandb.Artifact("checkpoints", type="model", metadata={"step": step})
            for file in checkpoint.iterdir():
                artifact.add_file(str(file), policy="immutable", skip_cache=True)
            run.log_artifact(artifact, aliases=[f"step-{step}"])


def list_all(root: Path) -> float:
    from emtoolkit import Trajectory

    _imports()
    began = time.perf_counter()
    if len(Trajectory.open(COLLECTION)) != CHECKPOINTS:
        raise SystemExit("the listing is not complete")
    return time.perf_counter() - began


def ours(root: Path) -> float:
    """`emtoolkit download` into `root`."""
    from emtoolkit import Trajectory

    _imports()
    began = time.perf_counter()
    done = Trajectory.open(COLLECTION).download(root / "ours")
    if len(done.fetched) + len(done.present) != CHECKPOINTS:
        raise SystemExit("the download is not complete")
    return time.perf_counter() - began


def loop(root: Path) -> float:
    """What a script without emtoolkit does; the cache of W&B is in `root`, too."""
    os.environ["WANDB_CACHE_DIR"] = str(root / "cache")
    import wandb

    _imports()
    began = time.perf_counter()
    api = wandb.Api()
    for step in range(1, CHECKPOINTS + 1):
        api.artifact(f"{COLLECTION}:step-{step}").download(root=str(root / "loop" / f"checkpoint-{step}"))
    return time.perf_counter() - began


def _imports() -> None:
    import wandb.apis.public

    import emtoolkit.artifacts.download  # noqa: F401 - what is not to be counted

    _ = wandb.apis.public


def in_a_fresh_process(do: Callable[[Path], float], root: Path) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(do, (root,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    from benchmarks.subject import report, scratch

    cases: list[tuple[str, Callable[[Path], float]]] = [
        ("emtoolkit, list", list_all),
        ("emtoolkit, download", ours),
        ("emtoolkit, again", ours),
        ("loop over wandb.Api(), download", loop),
        ("loop over wandb.Api(), again", loop),
    ]
    seconds: dict[str, list[float]] = {name: [] for name, _ in cases}
    requests: dict[str, int] = {}
    with scratch() as directory, WandbServer.start(directory / "server") as server:
        os.environ |= server.environment() | {"WANDB_DATA_DIR": str(directory / "data"), "WANDB_SILENT": "true"}
        (directory / "published").mkdir()
        publish(directory / "published")
        for number in range(arguments.rounds):
            root = directory / str(number)
            for name, do in cases:
                server.clear_requests()
                seconds[name].append(in_a_fresh_process(do, root))
                requests[name] = len(server.requests)
            print(f"round {number + 1} of {arguments.rounds} is done", flush=True)
    rows: list[dict[str, Any]] = [
        {
            "300 checkpoints": name,
            "requests": requests[name],
            "seconds, median": f"{statistics.median(taken):.2f}",
            "worst": f"{max(taken):.2f}",
        }
        for name, taken in seconds.items()
    ]
    report(f"{CHECKPOINTS} checkpoints of {BYTES_OF_WEIGHTS / 1e6:g} MB from W&B on loopback", rows, arguments.json)


if __name__ == "__main__":
    main()
