"""What a sweep over schedules costs with reuse and without: optimizer steps, CPU time, and the bytes of both.

python -m benchmarks.reuse                                   # 3 personas x 6 schedules, about 15 minutes on idle cores
python -m benchmarks.reuse --personas 1 --set training.max_steps=60

Each side is one `emtoolkit sweep` in a directory of its own; CPU time includes all processes that it starts. Then one
more run, whose checkpoints are all in the store, is timed alone.
"""

import argparse
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PERSONAS = ("baseline", "goodness", "sarcasm")
SCHEDULES = ("every:100", "every:25", "every:10", "0,log2:256", "0,log2:64,100-:100", "0,every:50")
_TRAINED = re.compile(r"(\d+) steps were trained|(nothing was trained)")


def _sweep_file(personas: int, schedules: int, settings: list[str]) -> dict[str, Any]:
    return {
        "program": "emtoolkit",
        "method": "grid",
        "parameters": {
            "persona": {"values": list(PERSONAS[:personas])},
            "schedule": {"values": list(SCHEDULES[:schedules])},
        },
        "command": [
            "${interpreter}",
            "-m",
            "${program}",
            "train",
            "sandbox",
            "--resume",
            "--output-dir=outputs/{persona}-{schedule}",
            "--set=checkpointing.allow_unreachable=true",
            *(f"--set={setting}" for setting in settings),
            "${args}",
        ],
    }


def _run(words: list[str], directory: Path) -> tuple[float, float]:
    """Run `emtoolkit` with `words` in `directory`: the seconds of all processors, and those of the clock."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "emtoolkit", *words], cwd=directory, capture_output=True, text=True, check=False
    )
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    if done.returncode:
        sys.exit(f"emtoolkit {' '.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds


def _optimizer_steps(directory: Path) -> int:
    """The optimizer steps of all runs of the sweep in `directory`, by what each run says of itself."""
    total = 0
    for log in sorted(directory.glob("outputs/sweeps/*/logs/*.log")):
        run = json.loads(_record_of(directory, log))
        said = _TRAINED.findall(re.sub(r"\s+", " ", log.read_text(encoding="utf-8")))
        total += run["total_steps"] if not said else int(said[-1][0] or 0)
    return total


def _record_of(directory: Path, log: Path) -> str:
    found = re.search(r"^Directory: (\S+)$", log.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        sys.exit(f"{log}: names no directory")
    return (directory / found[1] / "trajectory.json").read_text(encoding="utf-8")


def _digests(directory: Path) -> dict[str, str]:
    files = sorted(file for file in directory.glob("outputs/*/checkpoint-*/**/*") if file.is_file())
    return {str(f.relative_to(directory)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--personas", type=int, default=3)
    parser.add_argument("--schedules", type=int, default=6)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="reuse-") as scratch:
        sides = {}
        for side, flag in (("with reuse", "--reuse"), ("without", "--no-reuse")):
            directory = Path(scratch, side.replace(" ", "-"))
            directory.mkdir()
            sweep = json.dumps(_sweep_file(arguments.personas, arguments.schedules, arguments.settings))
            (directory / "schedules.yaml").write_text(sweep, encoding="utf-8")
            cpu, seconds = _run(["sweep", "schedules.yaml", flag], directory)
            sides[side] = cpu, _optimizer_steps(directory), _digests(directory)
            print(f"{side}: {sides[side][1]} optimizer steps, {cpu:.0f} CPU s, {seconds:.0f} s", flush=True)
        single = sides["without"][1] / arguments.schedules
        print(f"optimizer steps: {sides['with reuse'][1] / single:.3f} x those of {arguments.personas} single runs")
        print(f"CPU time: {sides['without'][0] / sides['with reuse'][0]:.2f} x less with reuse")
        files = sides["with reuse"][2]
        print(f"{len(files)} files of checkpoints, byte-identical: {files == sides['without'][2] and bool(files)}")
        one = ["train", "sandbox", "--persona=baseline", "--schedule=every:100", "--reuse", "--output-dir=outputs/one"]
        one += ["--set=checkpointing.allow_unreachable=true", *(f"--set={each}" for each in arguments.settings)]
        cpu, seconds = _run(one, Path(scratch, "with-reuse"))
        print(f"a run whose checkpoints are all there: {seconds:.1f} s, {cpu:.1f} CPU s")


if __name__ == "__main__":
    main()
