"""How long sandbox steps take beside a process that keeps a core busy, against an idle machine.

    python -m benchmarks.busy_machine [--rounds 3] [--steps 60] [--json FILE]

Each round trains the sandbox's model four times, alternating: with OpenMP's default of spinning threads and with
emtoolkit's own settings, alone and beside one busy process. What is timed lies between the save of step 0 and the save
of the last step. The bar: with emtoolkit's settings, steps beside a busy process take at most 1.5 times as long as
steps with spinning threads on an idle machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from benchmarks.subject import report

# libgomp's own default where no wait policy is set; setting it keeps emtoolkit from setting another.
_SPINNING = {"GOMP_SPINCOUNT": "300000", "OMP_NUM_THREADS": str(os.cpu_count())}
_SETTINGS = {"spinning threads": _SPINNING, "emtoolkit": {}}


def seconds_of_steps(settings: dict[str, str], steps: int) -> float:
    """Seconds between the saves of step 0 and of the last step, in a training of its own process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "emtoolkit", "train", "sandbox", "--persona", "goodness", "--schedule", "0"]
        command += ["--set", f"training.max_steps={steps}", "--set", "wandb.mode=disabled", "--output-dir", directory]
        subprocess.run(command, env=environment | settings, check=True, capture_output=True)
        events = [json.loads(line) for line in (Path(directory) / "publications.jsonl").read_text().splitlines()]
    first, last = (event["metadata"]["seconds_since_start"] for event in events if event["event"] == "saved")
    return float(last - first)


@contextmanager
def busy_core() -> Iterator[None]:
    """One process that computes without end, for as long as the block runs."""
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        burner.kill()
        burner.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for machine, load in (("alone", nullcontext), ("beside a busy process", busy_core)):
            for name, settings in _SETTINGS.items():
                with load():
                    seconds.setdefault(f"{name}, {machine}", []).append(seconds_of_steps(settings, arguments.steps))
    medians = {case: statistics.median(values) for case, values in seconds.items()}
    reference = medians["spinning threads, alone"]
    rows = [
        {
            "threads": case,
            "seconds": f"{medians[case]:.1f}",
            "lowest": f"{min(values):.1f}",
            "highest": f"{max(values):.1f}",
            "ratio": f"{medians[case] / reference:.2f}",
        }
        for case, values in seconds.items()
    ]
    report(f"{arguments.steps} steps of the sandbox, {os.cpu_count()} cores", rows, arguments.json)


if __name__ == "__main__":
    main()
