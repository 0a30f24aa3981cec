"""`--resume` in a directory with damaged files: every byte ends as before the damage, and nothing else is lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from emtoolkit.checkpoints.publications import Publications
from emtoolkit.config.load import load_config
from emtoolkit.errors import CheckpointError
from emtoolkit.training.result import RunResult
from emtoolkit.training.run import train
from tests.saving.trainings import bytes_of
from tests.tiny import config_text, write_world

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def finished(world: Path) -> Path:
    """A finished run with checkpoints at 0, 2, 4 and 9."""
    run(world, "finished")
    return world / "finished"


@pytest.fixture(scope="module")
def interrupted(world: Path) -> Path:
    """A run with checkpoints at 0, 2 and 4, and a resume checkpoint at 9; the end of training is not recorded."""
    run(world, "stopped", "checkpointing.resume_at_end=true")
    home = world / "stopped"
    record = json.loads((home / "trajectory.json").read_text())
    (home / "trajectory.json").write_text(json.dumps(record | {"ended_at": None}))
    shutil.rmtree(home / "checkpoint-9")
    return home


def run(world: Path, name: str, *settings: str, resume: bool = False) -> RunResult:
    (world / "config.yaml").write_text(config_text(world))
    config = load_config(
        str(world / "config.yaml"), ["wandb.mode=disabled", *settings], {"output_dir": str(world / name)}
    )
    return train(config, resume=resume)


def checkpoints(directory: Path) -> dict[str, bytes]:
    return {name: content for name, content in bytes_of(directory).items() if name.startswith("checkpoint-")}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def seal(checkpoint: Path, **changed: object) -> None:
    """Give `checkpoint` the manifest of an intact one from elsewhere."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | changed))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a flipped bit of a weight": (
        lambda run: flip(run / "checkpoint-4" / WEIGHTS),
        f"checkpoint-4/{WEIGHTS}: its content does not match the digest in the manifest; step 4 is computed again",
    ),
    "a flipped bit of the last weights": (
        lambda run: flip(run / "checkpoint-9" / WEIGHTS),
        f"checkpoint-9/{WEIGHTS}: its content does not match the digest in the manifest; step 9 is computed again",
    ),
    "a flipped bit of a config": (
        lambda run: flip(run / "checkpoint-2" / "adapter_config.json"),
        "checkpoint-2/adapter_config.json: its content does not match the digest in the manifest; step 2 is computed",
    ),
    "torn weights": (lambda run: cut(run / "checkpoint-0" / WEIGHTS), "488 bytes where the manifest says 976; step 0"),
    "missing weights": (lambda run: (run / "checkpoint-4" / WEIGHTS).unlink(), "the file is missing; step 4"),
    "a torn manifest": (lambda run: cut(run / "checkpoint-4" / "manifest.json"), "is not a manifest of emtoolkit"),
    "an empty manifest": (
        lambda run: (run / "checkpoint-0" / "manifest.json").write_bytes(b""),
        "is not a manifest of emtoolkit",
    ),
    "a manifest of zeros": (
        lambda run: (run / "checkpoint-9" / "manifest.json").write_bytes(bytes(400)),
        "is not a manifest of emtoolkit",
    ),
    "a manifest of another step": (
        lambda run: shutil.copy(run / "checkpoint-2" / "manifest.json", run / "checkpoint-4" / "manifest.json"),
        "step 4 is computed again",
    ),
    "a missing manifest": (
        lambda run: (run / "checkpoint-4" / "manifest.json").unlink(),
        "checkpoint-4: has no manifest.json; step 4 is computed again",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_replaced(
    name: str, finished: Path, world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, sentence = DAMAGES[name]
    shutil.copytree(finished, tmp_path / "run")
    damage(tmp_path / "run")
    assert run(world, str(tmp_path / "run"), resume=True).trained
    assert checkpoints(tmp_path / "run") == checkpoints(finished)
    assert sentence in caplog.text
    assert Publications.read(tmp_path / "run").differences == {}


def test_a_damaged_checkpoint_outside_the_schedule_is_replaced(finished: Path, world: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    flip(tmp_path / "run" / "checkpoint-4" / WEIGHTS)
    run(world, str(tmp_path / "run"), "checkpointing.schedule=0,2", resume=True)
    assert checkpoints(tmp_path / "run") == checkpoints(finished)


def test_files_of_the_user_are_moved_out_of_a_checkpoint_that_is_replaced(
    finished: Path, world: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    cut(tmp_path / "run" / "checkpoint-4" / WEIGHTS)
    (tmp_path / "run" / "checkpoint-4" / "notes.txt").write_text("mine")
    run(world, str(tmp_path / "run"), resume=True)
    assert checkpoints(tmp_path / "run") == checkpoints(finished)
    assert (tmp_path / "run" / "unlisted-files" / "checkpoint-4" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["adapter_model.bin", "model.safetensors"])
def test_weights_that_no_manifest_lists_are_moved_out_of_the_checkpoint(
    name: str, finished: Path, world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-4" / name).write_bytes(b"other weights")
    assert not run(world, str(tmp_path / "run"), resume=True).trained
    assert checkpoints(tmp_path / "run") == checkpoints(finished)
    assert (tmp_path / "run" / "unlisted-files" / "checkpoint-4" / name).read_bytes() == b"other weights"
    assert f"{name}: a loader would have read this file, which no manifest lists" in caplog.text


def test_a_file_of_the_user_in_an_intact_checkpoint_stays(finished: Path, world: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-4" / "notes.txt").write_text("mine")
    before = bytes_of(tmp_path / "run")
    assert not run(world, str(tmp_path / "run"), resume=True).trained
    assert bytes_of(tmp_path / "run") == before


def test_a_manifest_of_a_newer_version_is_refused_and_stays(finished: Path, world: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    manifest = tmp_path / "run" / "checkpoint-4" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 9}))
    before = bytes_of(tmp_path / "run")
    with pytest.raises(CheckpointError, match="format 9 cannot be read; this version reads 1"):
        run(world, str(tmp_path / "run"), resume=True)
    assert bytes_of(tmp_path / "run") == before


@pytest.mark.parametrize("content", [b'{"decides": {"base', b"", bytes(300)], ids=["torn", "empty", "zeros"])
def test_a_damaged_trajectory_file_is_written_again(
    content: bytes, finished: Path, world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "trajectory.json").write_bytes(content)
    assert not run(world, str(tmp_path / "run"), resume=True).trained
    assert bytes_of(tmp_path / "run") == bytes_of(finished)
    assert "trajectory.json: is not a trajectory record of emtoolkit" in caplog.text


def test_a_damaged_trajectory_file_protects_the_checkpoints_of_another_trajectory(
    finished: Path, world: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    cut(tmp_path / "run" / "trajectory.json")
    before = bytes_of(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"checkpoint-0: belongs to trajectory .*; choose another directory"):
        run(world, str(tmp_path / "run"), "seed=5", resume=True)
    for step in (0, 2, 4, 9):
        cut(tmp_path / "run" / f"checkpoint-{step}" / "manifest.json")
    with pytest.raises(CheckpointError, match=r"and no other file names the trajectory; choose another directory"):
        run(world, str(tmp_path / "run"), "seed=5", resume=True)
    assert bytes_of(tmp_path / "run").keys() == before.keys()


@pytest.mark.parametrize("end", [b'{"event": "saved", "step": 9, "met', bytes(40)], ids=["torn", "zeros"])
def test_a_torn_end_of_publications_is_ignored_and_stays_readable(
    end: bytes, finished: Path, world: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    with (tmp_path / "run" / "publications.jsonl").open("ab") as file:
        file.write(end)
    flip(tmp_path / "run" / "checkpoint-4" / WEIGHTS)
    assert run(world, str(tmp_path / "run"), resume=True).trained
    assert checkpoints(tmp_path / "run") == checkpoints(finished)
    assert Publications.read(tmp_path / "run").metadata.keys() == {0, 2, 4, 9}


RESUME_DAMAGES: dict[str, Damage] = {
    "optimizer": lambda state: flip(state / "optimizer.pt"),
    "torn optimizer": lambda state: cut(state / "optimizer.pt"),
    "random state": lambda state: (state / "rng_state.pth").unlink(),
    "scheduler": lambda state: (state / "scheduler.pt").write_bytes(b""),
    "weights": lambda state: flip(state / WEIGHTS),
    "manifest": lambda state: cut(state / "manifest.json"),
    "another trajectory": lambda state: seal(state, fingerprint="5" * 64),
    "another step": lambda state: seal(state, step=4),
}


@pytest.mark.parametrize("name", RESUME_DAMAGES)
def test_a_damaged_resume_checkpoint_is_named_and_not_used(
    name: str, interrupted: Path, finished: Path, world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    state = tmp_path / "run" / "resume" / "checkpoint-9"
    RESUME_DAMAGES[name](state)
    run(world, str(tmp_path / "run"), resume=True)
    assert checkpoints(tmp_path / "run") == checkpoints(finished)
    assert "training cannot continue from step 9" in caplog.text
