"""Two real processes under torchrun, over gloo: one set of checkpoints, and a resume that goes on exactly."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from emtoolkit.checkpoints.listing import list_checkpoints
from tests.checkpoints.trainings import bytes_of, saved_steps

ROOT = Path(__file__).parent.parent.parent


def torchrun(directory: Path, schedule: str, **options: Any) -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = ["-m", "tests.checkpoints.distributed_training", str(directory), schedule, json.dumps(options)]
    return subprocess.run([*command, *script], cwd=ROOT, capture_output=True, check=False).returncode


def test_two_processes_save_one_set_of_checkpoints_and_resume_exactly(tmp_path: Path) -> None:
    """16 rows over two processes at batch 2 are 4 steps an epoch, 8 in two."""
    assert torchrun(tmp_path / "whole", "0,every:1") == 0
    assert saved_steps(tmp_path / "whole") == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert all(info.complete for info in list_checkpoints(tmp_path / "whole", rehash=True))

    directory = tmp_path / "resumed"
    # The clock of the first process to look decides for both; then both die between two steps.
    assert torchrun(directory, "0,2", resume_every="0.001s", die_at=6) != 0
    (resume,) = (directory / "resume").iterdir()
    assert sorted(path.name for path in resume.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "optimizer.pt",
        "rng_state_0.pth",
        "rng_state_1.pth",
        "scheduler.pt",
        "trainer_state.json",
    ]
    assert torchrun(directory, "0,2,7", resume_from=str(resume)) == 0

    assert saved_steps(directory) == [0, 2, 7, 8]
    for step in (0, 2, 7, 8):
        assert bytes_of(directory / f"checkpoint-{step}") == bytes_of(tmp_path / "whole" / f"checkpoint-{step}"), step
