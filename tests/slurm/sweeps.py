"""Sweeps for the tests on Slurm, in a directory of their own, and what they leave."""

import json
import time
from pathlib import Path
from typing import Any

import yaml

from tests.in_process import Done, emtoolkit
from tests.processes import HANG_SECONDS
from tests.saving.trainings import bytes_of

# Counts the programs that run at the same time in `most`. Unless "mended" exists, it fails for a=2, and is killed for
# a=8, and with its sweep for a=9.
PROGRAM = """\
import fcntl, os, sys, time
if not os.path.exists("mended") and (words := {"--a=8", "--a=9"} & set(sys.argv)):
    if "--a=9" in words:
        os.kill(os.getppid(), 9)
    os.kill(os.getpid(), 9)
def change(by):
    with open("count", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        now, most = map(int, file.read().split() or (0, 0))
        file.truncate(0)
        file.write(f"{now + by} {max(most, now + by)}")
change(1)
with open("ran.txt", "a") as file:
    print(*sys.argv[1:], file=file)
time.sleep(1)
change(-1)
if "--a=2" in sys.argv and not os.path.exists("mended"):
    raise ValueError("2 does not work")
"""


def write(directory: Path, values: list[Any], **more: Any) -> Path:
    content = {"method": "grid", "program": "prog.py", "parameters": {"a": {"values": values}}}
    (directory / "sweep.yaml").write_text(yaml.safe_dump(content | more))
    return Path("sweep.yaml")


def on_slurm(directory: Path, *words: str) -> Done:
    return emtoolkit("sweep", "sweep.yaml", "--on", "slurm", *words, cwd=directory)


def states(directory: Path) -> list[tuple[Any, str, int]]:
    done = on_slurm(directory, "--status", "--json")
    assert done.code == 0, done.err
    return [(run["parameters"].get("a"), run["state"], run["starts"]) for run in json.loads(done.out)]


def wait_for(path: Path) -> None:
    end = time.monotonic() + HANG_SECONDS
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.05)


def log_of(directory: Path) -> str:
    return "".join(log.read_text() for log in (directory / "outputs/sweeps/sweep-local/logs").glob("*.log"))


def of_whole_training(directory: Path) -> dict[str, bytes]:
    """The checkpoints of the same training without an interruption, run here."""
    done = emtoolkit("train", "run.yaml", "--output-dir", "whole", "--wandb.mode=disabled", cwd=directory)
    assert done.code == 0, done.err
    return checkpoints(directory / "whole")


def checkpoints(directory: Path) -> dict[str, bytes]:
    return {name: content for name, content in bytes_of(directory).items() if name.startswith("checkpoint-")}
