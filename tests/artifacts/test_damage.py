"""Only a checkpoint's own, undamaged files go to W&B, from `emtoolkit sync` and from a training alike."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb

from emtoolkit.artifacts.destination import Destination
from emtoolkit.artifacts.publication import Publication
from emtoolkit.artifacts.publish import WandbPublisher
from emtoolkit.artifacts.sync import sync
from emtoolkit.checkpoints.manifest import TrajectorySeal
from emtoolkit.checkpoints.trajectory_identity import Identity
from tests.artifacts.stored import IDENTITY, TOTAL_STEPS
from tests.artifacts.trainings import on_wandb, publish, saved
from tests.in_process import emtoolkit
from tests.processes import HANG_SECONDS
from tests.wandb_server import WandbServer

WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "manifest.json"


def flip_a_bit(checkpoint: Path) -> None:
    content = bytearray((checkpoint / WEIGHTS).read_bytes())
    content[100] ^= 1
    (checkpoint / WEIGHTS).write_bytes(content)


def truncate(checkpoint: Path) -> None:
    os.truncate(checkpoint / WEIGHTS, 100)


def tear_the_manifest(checkpoint: Path) -> None:
    os.truncate(checkpoint / MANIFEST, 100)


def copy_another_step(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    shutil.copytree(checkpoint.with_name("checkpoint-0"), checkpoint)


def replace_by_a_symlink(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).rename(elsewhere := checkpoint.parent / "elsewhere")
    (checkpoint / WEIGHTS).symlink_to(elsewhere)


def copy_another_trajectory(checkpoint: Path) -> None:
    TrajectorySeal(Identity(fingerprinted={"seed": 8}), 300).seal(_without_manifest(checkpoint), 2)


def _without_manifest(checkpoint: Path) -> Path:
    (checkpoint / MANIFEST).unlink()
    return checkpoint


def lose_everything(checkpoint: Path) -> None:
    for file in checkpoint.iterdir():
        file.unlink()


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped bit": (flip_a_bit, f"checkpoint-2/{WEIGHTS}: its content does not match the digest in the manifest"),
    "a truncated file": (truncate, f"checkpoint-2/{WEIGHTS}: 100 bytes where the manifest says 200"),
    "a missing file": (lambda c: (c / CONFIG).unlink(), f"checkpoint-2/{CONFIG}: the file is missing"),
    "a torn manifest": (tear_the_manifest, f"checkpoint-2/{MANIFEST}: is not a manifest of emtoolkit"),
    "no manifest": (_without_manifest, "checkpoint-2: has no manifest.json"),
    "no files": (lose_everything, "checkpoint-2: has no manifest.json"),
    "a copy of another step": (copy_another_step, f"checkpoint-2/{MANIFEST}: is the manifest of step 0, not"),
    "a symlink": (replace_by_a_symlink, f"checkpoint-2/{WEIGHTS}: the manifest may only name plain files inside"),
    "a copy of another trajectory": (copy_another_trajectory, "checkpoint-2: belongs to trajectory 2f4af542, the"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_others_are_published(
    kind: str, server: WandbServer, tmp_path: Path
) -> None:
    damage, sentence = DAMAGE[kind]
    directory = saved(tmp_path / "out", dict.fromkeys([0, 2, 4], ""))
    damage(directory / "checkpoint-2")
    done = emtoolkit("sync", "out", "--project", "proj", cwd=tmp_path)
    assert (done.code, list(on_wandb(server).values())) == (1, [[0, 4]])
    (told,) = [line for line in done.err.splitlines() if "checkpoint-2" in line]
    assert told.startswith(f"emtoolkit: out/{sentence}")
    assert told.endswith("; the checkpoint is not published")
    again = sync(directory, project="proj")
    assert (again.published, len(again.problems)) == ((), 1)


@pytest.mark.parametrize("wrote", [True, False], ids=["its own", "of a run before"])
@pytest.mark.parametrize("kind", ["a flipped bit", "a truncated file", "a torn manifest", "a symlink"])
def test_a_training_does_not_publish_what_was_damaged_before_the_upload(
    kind: str, wrote: bool, server: WandbServer, tmp_path: Path
) -> None:
    damage, sentence = DAMAGE[kind]
    directory = saved(tmp_path / "out", dict.fromkeys([0, 2, 4], ""))
    publications = []
    for step in (0, 2, 4):
        path = directory / f"checkpoint-{step}"
        sealed = TrajectorySeal(IDENTITY, TOTAL_STEPS).seal(_without_manifest(path), step) if wrote else None
        publications.append(Publication(step, path, False, {"step": step}, sealed))
    damage(directory / "checkpoint-2")
    run = wandb.init(project="proj", dir=tmp_path, settings=wandb.Settings(silent=True))
    publisher = WandbPublisher(run, Destination.of(directory, IDENTITY))
    for publication in publications:
        publisher.publish(publication)
    publisher.drain(HANG_SECONDS)
    run.finish()
    assert list(on_wandb(server).values()) == [[0, 4]]
    assert list(publisher.failures) == list(publisher.damaged) == [2]
    assert sentence in publisher.damaged[2]


def litter(checkpoint: Path) -> None:
    (checkpoint / ".env").write_text("HF_TOKEN=hf_secret")
    (checkpoint / "optimizer.pt").write_bytes(b"x")
    (checkpoint / f"{CONFIG}~").write_text("{}")
    (checkpoint / f".{CONFIG}.swp").write_text("{}")
    (checkpoint / "notes").mkdir()
    (checkpoint / "notes" / "todo.txt").write_text("x")
    (checkpoint / "id_rsa").symlink_to("/etc/hostname")
    (checkpoint / "home").symlink_to("/etc")


@pytest.mark.parametrize("later", [False, True], ids=["in training", "by sync"])
def test_only_the_manifest_and_its_files_are_published(later: bool, server: WandbServer, tmp_path: Path) -> None:
    directory = saved(tmp_path / "out", {0: ""})
    litter(directory / "checkpoint-0")
    assert (sync(directory, project="proj").problems if later else publish(directory, "abcd1234")) in ((), {})
    (collection,) = server.store.project("tester", "proj").collections.values()
    (version,) = collection.versions
    assert sorted(version.contents) == [CONFIG, WEIGHTS, MANIFEST]


class Changing:
    """A W&B run during whose upload another program writes to a file."""

    def __init__(self, run: Any, file: Path, content: bytes) -> None:
        self._run, self._file, self._content = run, file, content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def log_artifact(self, *args: Any, **options: Any) -> Any:
        logged = self._run.log_artifact(*args, **options)
        # By now the client has its digests, and may have sent the file.
        logged.wait()
        self._file.write_bytes(self._content)
        return logged


def test_a_file_that_changes_during_the_upload_is_named_and_its_version_is_no_checkpoint(
    server: WandbServer, tmp_path: Path
) -> None:
    directory = saved(tmp_path / "out", {0: ""})
    run = wandb.init(project="proj", dir=tmp_path, settings=wandb.Settings(silent=True))
    changing = Changing(run, directory / "checkpoint-0" / WEIGHTS, b"y" * 200)
    publisher = WandbPublisher(changing, Destination.of(directory, IDENTITY))
    publisher.publish(Publication(0, directory / "checkpoint-0", False, {"step": 0}))
    publisher.drain(HANG_SECONDS)
    run.finish()
    assert list(on_wandb(server).values()) == [[]]
    assert f"{WEIGHTS}: the file was written while it was published" in publisher.damaged[0]


def test_a_file_that_changed_between_the_check_and_the_upload_is_refused_by_the_server(
    server: WandbServer, tmp_path: Path
) -> None:
    directory = saved(tmp_path / "out", {0: ""})
    run = wandb.init(project="proj", dir=tmp_path, settings=wandb.Settings(silent=True))

    class ChangedBefore(Changing):
        def log_artifact(self, *args: Any, **options: Any) -> Any:
            self._file.write_bytes(self._content)
            return self._run.log_artifact(*args, **options)

    changing = ChangedBefore(run, directory / "checkpoint-0" / WEIGHTS, b"y" * 200)
    publisher = WandbPublisher(changing, Destination.of(directory, IDENTITY))
    publisher.publish(Publication(0, directory / "checkpoint-0", False, {"step": 0}))
    publisher.drain(HANG_SECONDS)
    run.finish()
    assert list(on_wandb(server).values()) == [[]]
    assert list(publisher.failures) == [0]
