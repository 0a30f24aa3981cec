"""The processor time of commands that train nothing, or two steps: what the start of a run costs.

    python -m benchmarks.startup [--repeats 5] [--only train] [--against CHECKOUT] [--json FILE]

Each command runs in a process of its own, with the cache of tokens filled, on the sandbox (`emtoolkit sandbox build`).
With `--against` the commands of another checkout alternate with those of this one. The time is user and system time of
the process and its children, on one thread.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.subject import report

COMMANDS = {
    "--help": ["--help"],
    "plan sandbox": ["plan", "sandbox"],
    "train sandbox, two steps": [
        "train",
        "sandbox",
        "--schedule",
        "0,2",
        "--training.max_steps=2",
        "--wandb.mode=disabled",
    ],
}
HERE = Path(__file__).parent.parent


def seconds_of(checkout: Path, words: list[str]) -> float:
    """The processor time of one command, in seconds."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as directory:
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "emtoolkit", *words], cwd=directory, env=environment, check=True, capture_output=True
        )
        after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="part of the name of a command")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    checkouts = {"this checkout": HERE} | ({"against": arguments.against.absolute()} if arguments.against else {})
    rows = []
    for name, words in ((name, words) for name, words in COMMANDS.items() if arguments.only in name):
        times: dict[str, list[float]] = {label: [] for label in checkouts}
        for checkout in checkouts.values():
            seconds_of(checkout, words)  # fills the caches
        for _ in range(arguments.repeats):
            for label, checkout in checkouts.items():
                times[label].append(seconds_of(checkout, words))
        row = {"command": name} | {label: f"{statistics.median(taken):.2f}" for label, taken in times.items()}
        rows.append(row)
        print(row, flush=True)
    report("Processor seconds of a start, medians", rows, arguments.json)


if __name__ == "__main__":
    main()
