"""The time in which `emtoolkit sync` publishes many checkpoints, beside the way of one at a time.

    python -m benchmarks.publishing [--checkpoints N] [--rounds N] [--second N] [--json FILE]

The server is the loopback server of the tests in a process of its own, so that a request costs next to nothing; over a
real network each request costs a round trip more. Both ways take turns, each into a project of its own. The checkpoints
are small, because the time of large ones is that of the line. The second table is a sync with nothing to do;
its CPU time is that of this process, without the server's.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.subject import report, scratch


@contextmanager
def server(directory: Path) -> Iterator[None]:
    """A server in a process of its own, which W&B's client in this process uses."""
    command = [sys.executable, "-m", "tests.wandb_server", "--directory", str(directory / "server")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(5):
            line = process.stdout.readline() if process.stdout is not None else ""
            name, _, value = line.strip().removeprefix("export ").partition("=")
            os.environ[name] = value
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            os.environ[name] = str(directory / name.lower())
        yield
    finally:
        import wandb

        wandb.teardown()
        process.terminate()
        process.wait()


def one_at_a_time(directory: Path, project: str) -> float:
    """Each checkpoint is committed before the next one begins, as a run that trains publishes."""
    import wandb

    from emtoolkit.artifacts.attached_run import attached_run
    from emtoolkit.artifacts.destination import Destination
    from emtoolkit.artifacts.publication import Publication
    from emtoolkit.checkpoints.listing import list_checkpoints
    from emtoolkit.checkpoints.publications import Publications

    wandb.setup()
    began = time.perf_counter()
    publications = Publications.read(directory)
    destination = Destination(directory, publications.collection or "", publications.tags, on_cpu=True)
    with attached_run(None, None, project=project) as run:
        for info in list_checkpoints(directory):
            destination.log(run, Publication.of(info, publications))
    return time.perf_counter() - began


def synced(directory: Path, project: str) -> float:
    """`emtoolkit sync`."""
    from emtoolkit.artifacts.sync import sync
    from emtoolkit.checkpoints.listing import list_checkpoints

    began = time.perf_counter()
    done = sync(directory, project=project)
    taken = time.perf_counter() - began
    if done.problems or len(done.on_wandb) != len(list_checkpoints(directory)):
        raise SystemExit(f"the sync is not complete: {done.problems[:1]}")
    return taken


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--second", type=int, default=3000, help="checkpoints of the sync with nothing to do")
    parser.add_argument("--json")
    arguments = parser.parse_args(words)
    from tests.artifacts.trainings import saved

    rows: list[dict[str, Any]] = []
    with scratch() as directory, server(directory):
        for number in range(arguments.rounds):
            one, other = (
                way(
                    saved(directory / f"{way.__name__}-{number}", dict.fromkeys(range(arguments.checkpoints), "")),
                    f"{way.__name__.replace('_', '-')}-{number}",
                )
                for way in (one_at_a_time, synced)
            )
            rows.append(
                {
                    "round": number + 1,
                    "one at a time": f"{one:.1f} s",
                    "sync": f"{other:.1f} s",
                    "ratio": f"{other / one:.2f}",
                }
            )
        title = f"Publishing {arguments.checkpoints} checkpoints"
        report(f"{title}; median ratio {statistics.median(float(row['ratio']) for row in rows):.2f}", rows, None)
        many = saved(directory / "many", dict.fromkeys(range(arguments.second), ""))
        first, before = synced(many, "many"), time.process_time()
        second, cpu = synced(many, "many"), time.process_time() - before
        row = {
            "checkpoints": arguments.second,
            "first sync": f"{first:.1f} s",
            "second sync": f"{second:.1f} s",
            "its CPU time": f"{cpu:.1f} s",
        }
        report("A sync with nothing to do", [row], arguments.json)


if __name__ == "__main__":
    main()
