"""Programs in two processes on the CPU, as launchers start them."""

import os
import subprocess
from pathlib import Path

from tests import preloaded

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# `accelerate launch --cpu --num_processes 2` would run one process and say nothing.
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
ROOT = Path(__file__).parent.parent


def command(module: str, *words: str | Path, launcher: tuple[str, ...] = TORCHRUN) -> list[str]:
    """Runs `module` with `words` in two processes, which are preloaded as the launcher is."""
    return preloaded.command(*launcher, "-m", module, *words)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def launched(
    module: str, *words: str | Path, launcher: tuple[str, ...] = TORCHRUN, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    argv = command(module, *words, launcher=launcher)
    return subprocess.run(argv, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
