"""Two real processes over gloo, under torchrun and accelerate: one set of checkpoints, and an exact resume."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.storage.lock import lock_directory
from tests.launched import ACCELERATE, TORCHRUN, launched
from tests.saving.trainings import bytes_of, saved_steps

pytestmark = pytest.mark.subprocess


def train(
    directory: Path, schedule: str, launcher: tuple[str, ...] = TORCHRUN, **options: Any
) -> subprocess.CompletedProcess[str]:
    argv = (directory, schedule, json.dumps(options))
    done = launched("tests.saving.distributed_training", *argv, launcher=launcher)
    for index in (0, 1):
        assert done.stdout.count(f"process {index} of 2") == 1, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted training under torchrun, saved at every step."""
    directory = tmp_path_factory.mktemp("distributed") / "whole"
    done = train(directory, "0,every:1")
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


def test_two_processes_save_one_set_of_checkpoints_and_resume_exactly(whole: Path, tmp_path: Path) -> None:
    """16 rows over two processes at batch 2 are 4 steps an epoch, 8 in two."""
    assert saved_steps(whole) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert all(info.complete for info in list_checkpoints(whole, rehash=True))

    directory = tmp_path / "resumed"
    # The clock of the process that reads it first decides for both; then both die between two steps.
    assert train(directory, "0,2", resume_every="0.001s", die_at=6, ask_at=3).returncode != 0
    # Process 0 sees the request of process 1 in this step or in the next one.
    (asked,) = Publications.read(directory).asked
    assert asked in (3, 4)
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
    # Another launcher continues the training.
    assert train(directory, "0,2,7", ACCELERATE, resume_from=str(resume)).returncode == 0

    assert saved_steps(directory) == [0, 2, asked, 7, 8]
    for step in (0, 2, asked, 7, 8):
        assert bytes_of(directory / f"checkpoint-{step}") == bytes_of(whole / f"checkpoint-{step}"), step


def test_the_weights_are_those_of_the_stock_trainer(whole: Path, tmp_path: Path) -> None:
    done = train(tmp_path / "stock", "0", stock=True, arguments={"save_strategy": "steps", "save_steps": 4})
    assert done.returncode == 0, done.stderr[-3000:]
    for step in (4, 8):
        ours, stock = (bytes_of(home / f"checkpoint-{step}") for home in (whole, tmp_path / "stock"))
        assert ours["adapter_model.safetensors"] == stock["adapter_model.safetensors"], step


def test_what_process_0_refuses_at_the_beginning_ends_the_other_too(whole: Path) -> None:
    """The other process would wait in the first step for a process that has ended."""
    before = bytes_of(whole)
    done = train(whole, "0", arguments={"learning_rate": 0.02})
    assert done.returncode != 0
    sentence = f"refused: {whole}: holds another trajectory (arguments.learning_rate is 0.01 there and 0.02 here)"
    assert done.stdout.count(sentence) == 2, done.stderr[-3000:]
    assert bytes_of(whole) == before


def test_an_error_of_no_known_kind_at_the_beginning_of_process_0_is_told_to_the_other(tmp_path: Path) -> None:
    done = train(tmp_path, "0", no_memory=True)
    assert done.returncode != 0
    lines = sorted(line for line in done.stdout.splitlines() if not line.startswith("process"))
    assert lines == [
        "raised: no memory for the copy",
        "refused: process 0: RuntimeError: no memory for the copy",
    ], done.stderr[-3000:]


def test_an_error_of_process_1_in_mid_training_saves_the_last_whole_step_and_ends_both(tmp_path: Path) -> None:
    done = train(tmp_path, "0,every:100", fail_in_1_at=3)
    assert done.returncode != 0
    assert done.stderr.count("a fault of the training's own") >= 1, done.stderr[-3000:]
    assert saved_steps(tmp_path) == [0, 3]
    assert all(info.complete for info in list_checkpoints(tmp_path, rehash=True))
    lock_directory(tmp_path).release()
