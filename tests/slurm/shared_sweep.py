"""`python -m tests.slurm.shared_sweep`: a job array, a W&B agent and a local sweep run the same combinations at once.

A real Slurm and the W&B server of the tests are started for it. The array and the local sweep share the records of the
combinations. The agent gets its combinations from W&B, writes into directories of its own, and shares the store of
trajectories. The table says who ran and who trained each combination; the exit code is 1 unless each was trained once
and both directories of each hold the bytes of a training that nobody else disturbed.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import yaml

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.sweeps.attempts import Attempts
from emtoolkit.sweeps.plan import plan_sweep
from tests import preloaded
from tests.processes import HANG_SECONDS
from tests.saving.trainings import bytes_of
from tests.slurm.cluster import cluster, why_no_cluster
from tests.tiny import config_text, write_world
from tests.wandb_server import WandbServer
from tests.wandb_server.processes import wandb_command

SEEDS = [1, 2, 3, 4, 5, 6]
COMMAND = [
    "${env}",
    "JOB=${envvar:SLURM_JOB_ID}",
    "PATH=.venv/bin:${envvar:PATH}",
    "${interpreter}",
    "-m",
    "emtoolkit",
    "train",
    "run.yaml",
]
OPTIONS = ["--resume", "--reuse", "--output-dir=out-{sweep}/s{seed}", "${args}"]


def prepared(home: Path) -> None:
    (home / "run.yaml").write_text(config_text(write_world(home / "world"), "schedule: '0-9:3'"))
    sweep = {"method": "grid", "program": "emtoolkit", "command": [*COMMAND, *OPTIONS], "project": "shared"}
    (home / "sweep.yaml").write_text(yaml.safe_dump(sweep | {"parameters": {"seed": {"values": SEEDS}}}))
    (home / ".venv" / "bin").mkdir(parents=True)
    (home / ".venv" / "bin" / "python").symlink_to(preloaded.interpreter())


def started_by(log: Path) -> str:
    """Who started the run with this log: a task of Slurm's has the number of its job in the environment."""
    return "array" if 'JOB="$SLURM_JOB_ID"' in log.read_text() else "local sweep"


def weights(directory: Path) -> dict[str, bytes]:
    return {name: content for name, content in bytes_of(directory).items() if name.startswith("checkpoint-")}


def finished(process: "subprocess.Popen[str]", who: str) -> None:
    said = process.communicate(timeout=HANG_SECONDS)[0]
    if process.returncode != 0:
        raise SystemExit(f"{who} ended with {process.returncode}:\n{said}")


def run_at_once(home: Path, environment: Mapping[str, str]) -> str:
    """Run the sweep in all three ways, and return the id of the sweep on W&B."""

    def start(argv: list[str], **variables: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            argv,
            cwd=home,
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    said = start(wandb_command("sweep", "sweep.yaml")).communicate(timeout=HANG_SECONDS)[0]
    found = re.search(r"wandb agent (\S+/(\w+))", said)
    if found is None:
        raise SystemExit(said)
    sweep = preloaded.command("emtoolkit", "sweep", "sweep.yaml")
    # The array is first, because a task waits until a node takes it.
    finished(start([*sweep, "--on", "slurm"], WANDB_MODE="offline"), "the submission")
    agent = start(wandb_command("agent", "-f", "-t", "120", found[1]))
    local = start([*sweep, "--jobs", "1"], WANDB_MODE="offline")
    finished(local, "the local sweep")
    finished(agent, "the agent")
    return found[2]


def report(home: Path, sweep_id: str, whole: Path) -> bool:
    """Print who ran and who trained each combination; whether each was trained once and is whole."""
    os.chdir(home)
    plan, attempts = plan_sweep(Path("sweep.yaml")), Attempts(Path("outputs/sweeps/sweep-local"))
    is_right = True
    trainings, starts = Counter[str](), Counter[str]()
    print("seed  started by            trained by   checkpoints    as trained alone")
    for run in plan.runs:
        seed, attempt = run.parameters["seed"], attempts.get(run.key)
        here = started_by(run.log)
        homes = {here: Path(f"out-local/s{seed}"), "agent": Path(f"out-{sweep_id}/s{seed}")}
        by = [who for who, directory in homes.items() if not Publications.read(directory).reused]
        steps = [
            [each.step for each in list_checkpoints(path, rehash=True) if each.complete] for path in homes.values()
        ]
        same = all(weights(directory) == weights(whole / f"s{seed}") for directory in homes.values())
        once = attempt is not None and attempt.number == len(by) == 1
        is_right &= once and steps == [[0, 3, 6, 9]] * 2 and same
        trainings.update(by)
        starts.update(homes.keys())
        counts = " and ".join(str(len(each)) for each in steps)
        print(f"{seed:<4}  {here + ', agent':20}  {', '.join(by):11}  {counts:13}  {'yes' if same else 'NO'}")
    print(f"{trainings.total()} trainings of {len(plan.runs)} combinations: {dict(trainings)}; starts: {dict(starts)}")
    return is_right


def main() -> int:
    if (why := why_no_cluster()) is not None:
        print(f"not run: {why}")
        return 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place, cluster(Path(place, "slurm")) as slurm:
        home = Path(place, "work")
        home.mkdir()
        prepared(home)
        with WandbServer.start(Path(place, "wandb-server")) as server:
            environment = {**os.environ, **slurm.environment, **server.environment(), "OMP_NUM_THREADS": "1"}
            environment |= {"PATH": f"{slurm.environment['PATH']}", "PYTHONPATH": str(Path.cwd())}
            environment.pop("WANDB_MODE", None)
            sweep_id = run_at_once(home, environment)
            slurm.wait_until_empty()
        for seed in SEEDS:
            words = ("train", "run.yaml", "--seed", str(seed), "--output-dir", f"whole/s{seed}", "--no-reuse")
            done = subprocess.run(
                preloaded.command("emtoolkit", *words), cwd=home, env={**environment, "WANDB_MODE": "disabled"},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                raise SystemExit(done.stderr)
        is_right = report(home, sweep_id, home / "whole")
        os.chdir("/")
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
