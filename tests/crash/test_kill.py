"""A subset of `make crash-test`: kills spread over all file-system events of a run, and torn resume checkpoints."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.resume_state import newest_resume_state
from tests import preloaded
from tests.crash.shim import compiler
from tests.crash.training import train
from tests.saving.callbacks import wait_for_disk
from tests.saving.trainings import lora_model, make_trainer

REPOSITORY = Path(__file__).parents[2]
RESUME_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "manifest.json",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
)


@pytest.mark.subprocess
@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="the shim watches the system calls of Linux on x86-64 and aarch64",
)
@pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")
def test_a_kill_at_a_file_event_loses_nothing_and_the_same_audit_finds_what_a_stock_trainer_loses(
    tmp_path: Path,
) -> None:
    counts = tmp_path / "counts.json"
    command = preloaded.command("tests.crash.audit", "--spread", "12", "--stock", "--json", counts)
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert counts.exists(), done.stderr
    report = json.loads(counts.read_bytes())

    rows = report["rows"]
    assert [fault for row in rows for fault in row["faults"]] == []
    for count in ("failed_resumes", "corrupt_or_phantom", "divergences", "left_overs"):
        assert [row[count] for row in rows] == [0, 0, 0, 0, 0], count
    assert all(row["kill_points"] > 0 for row in rows)
    calls = {call for row in rows for call in row["calls"]}
    # Each kind is planned, and a kill meets another where the threads come to their events in another order.
    assert calls <= {"create", "fsync", "mkdir", "rename", "rmdir", "truncate", "unlink", "write"}
    assert len(calls) >= 5
    assert report["torn"]["faults"] == []
    assert report["unsynced"] == []
    assert done.returncode == 0

    assert report["stock"]["failed_resumes"] > 0
    assert report["stock"]["corrupt_or_phantom"] > 0


class DieAt(TrainerCallback):
    """Ends training at a step, and keeps a resume checkpoint that is about to be replaced."""

    def __init__(self, step: int, ours: ScheduledCheckpointCallback, keep: Path, at: Path) -> None:
        self.step, self.ours, self.keep, self.at = step, ours, keep, at

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wait_for_disk(self.ours)
        if self.keep.exists() and not self.at.exists():
            shutil.copytree(self.keep, self.at)
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died after step 7, with the resume checkpoints of steps 3 and 6; tests copy it."""
    directory, aside = tmp_path_factory.mktemp("killed") / "run", tmp_path_factory.mktemp("aside") / "checkpoint-3"
    ours = ScheduledCheckpointCallback("0,3", resume_every="3 steps")
    die = DieAt(7, ours, keep=directory / "resume" / "checkpoint-3", at=aside)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(directory, [ours, die], model=lora_model(dropout=0.1)).train()
    ours._close()
    shutil.move(aside, directory / "resume" / "checkpoint-3")
    return directory


@pytest.fixture
def run(killed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "run"))


def test_these_are_the_files_of_a_resume_checkpoint(killed: Path) -> None:
    for step in (3, 6):
        files = (killed / "resume" / f"checkpoint-{step}").iterdir()
        assert tuple(sorted(file.name for file in files)) == RESUME_FILES
    assert newest_resume_state(killed) == killed / "resume" / "checkpoint-6"


@pytest.mark.parametrize("damage", ["half", "empty", "gone"])
@pytest.mark.parametrize("name", RESUME_FILES)
def test_a_torn_file_makes_resume_fall_back_to_the_older_whole_checkpoint(run: Path, name: str, damage: str) -> None:
    file = run / "resume" / "checkpoint-6" / name
    if damage == "gone":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size // 2 if damage == "half" else 0)

    assert newest_resume_state(run) == run / "resume" / "checkpoint-3"
    shutil.rmtree(run / "resume" / "checkpoint-3")
    assert newest_resume_state(run) is None


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt"])
def test_a_resume_from_a_checkpoint_that_lacks_a_file_says_which(run: Path, name: str) -> None:
    """A stock Trainer continues without the file and without a warning, and ends with another model."""
    (run / "resume" / "checkpoint-6" / name).unlink()

    with pytest.raises(CheckpointError, match=rf"cannot be resumed from \(.*/{name}: the file is missing\)"):
        train(run, resume_from=run / "resume" / "checkpoint-6")
