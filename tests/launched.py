"""Programs in two processes on the CPU, as launchers start them."""

import os
import subprocess
from pathlib import Path

from tests import preloaded

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# `accelerate launch --cpu --num_processes 2` would run one process and say nothing.
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
_NO_PYTHON = {TORCHRUN: "--no-python", ACCELERATE: "--no_python"}
ROOT = Path(__file__).parent.parent


def command(module: str, *words: str | Path, launcher: tuple[str, ...] = TORCHRUN, fresh: bool = False) -> list[str]:
    """Runs `module` with `words` in two processes; `fresh` ones import everything anew, which takes 16 s of CPU."""
    if fresh:
        return preloaded.command(*launcher, "-m", module, *words)
    return preloaded.command(*launcher, _NO_PYTHON[launcher], *preloaded.command(module, *words))


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def launched(
    module: str, *words: str | Path, launcher: tuple[str, ...] = TORCHRUN, cwd: Path = ROOT, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    argv = command(module, *words, launcher=launcher, fresh=fresh)
    return subprocess.run(argv, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
