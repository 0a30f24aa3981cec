"""A directory that changes is copied: a checkpoint is complete or absent, and a file with several names is one file."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.errors import CheckpointError
from emtoolkit.storage import copies
from emtoolkit.storage.copies import CopiedDirectory


@pytest.fixture
def copied(tmp_path: Path) -> CopiedDirectory:
    return copied_directory(tmp_path)


def copied_directory(tmp_path: Path) -> CopiedDirectory:
    return CopiedDirectory(
        tmp_path / "disk" / "run",
        tmp_path / "run",
        is_unit=lambda name: name.startswith("checkpoint-"),
        record="trajectory.json",
        links={},
    )


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def files(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_what_is_new_or_changed_is_copied_and_vanished_checkpoints_vanish(copied: CopiedDirectory) -> None:
    here = copied.original
    write(here / "trajectory.json", "1")
    write(here / "checkpoint-1" / "a" / "weights", "w1")
    write(here / "resume" / "checkpoint-1" / "state", "s1")
    write(here / ".tmp-checkpoint-2-7" / "weights", "half")
    write(here / ".lock", "")
    (here / "latest").symlink_to("trajectory.json")
    copied.update()
    first = {"trajectory.json": "1", "checkpoint-1/a/weights": "w1", "resume/checkpoint-1/state": "s1"}
    assert files(copied.copy) == first

    write(copied.copy / "evaluation" / "of-others", "stays")
    write(here / "trajectory.json", "2")
    (here / "resume" / "checkpoint-1").rename(here / ".tmp-gone")
    (here / "resume").rmdir()
    write(here / "checkpoint-2" / "weights", "w2")
    copied.update()
    assert files(copied.copy) == {
        "trajectory.json": "2",
        "checkpoint-1/a/weights": "w1",
        "checkpoint-2/weights": "w2",
        "evaluation/of-others": "stays",
    }
    assert not (copied.copy / "resume").exists()


def test_a_log_is_continued_beside_the_lines_of_others_and_without_half_a_line(copied: CopiedDirectory) -> None:
    log = write(copied.original / "publications.jsonl", "1\n2\n")
    copied.update()
    there = copied.copy / "publications.jsonl"
    with there.open("a") as file:
        file.write("published by a watch\n")
    with log.open("a") as file:
        file.write("3\n4")
    copied.update()
    assert there.read_text() == "1\n2\npublished by a watch\n3\n"
    with log.open("a") as file:
        file.write("4\n")
    copied.update()
    assert there.read_text() == "1\n2\npublished by a watch\n3\n44\n"


def test_what_was_brought_is_not_sent_back_and_its_log_is_continued(tmp_path: Path, copied: CopiedDirectory) -> None:
    write(copied.copy / "publications.jsonl", "1\n")
    weights = write(copied.copy / "checkpoint-1" / "weights", "w1")
    before = weights.stat()
    copied.bring()
    assert files(copied.original) == {"publications.jsonl": "1\n", "checkpoint-1/weights": "w1"}
    with (copied.original / "publications.jsonl").open("a") as file:
        file.write("2\n")
    copied.update()
    assert (copied.copy / "publications.jsonl").read_text() == "1\n2\n"
    assert weights.stat().st_ino == before.st_ino
    (copied.original / "checkpoint-1").rename(tmp_path / "elsewhere")
    copied.update()
    assert not weights.exists()


def test_a_file_with_two_names_is_copied_once(tmp_path: Path, copied: CopiedDirectory) -> None:
    other = CopiedDirectory(
        tmp_path / "disk" / "store",
        tmp_path / "store",
        is_unit=lambda name: name == "checkpoint-1",
        record="trajectory.json",
        links=copied._links,
    )
    weights = write(other.original / "checkpoint-1" / "weights", "w")
    other.update()
    (copied.original / "checkpoint-1").mkdir(parents=True)
    os.link(weights, copied.original / "checkpoint-1" / "weights")
    copied.update()
    assert (copied.copy / "checkpoint-1" / "weights").samefile(other.copy / "checkpoint-1" / "weights")


@pytest.mark.parametrize("fault", ["full", "replaced", "deleted"])
def test_a_checkpoint_is_never_there_in_part(
    copied: CopiedDirectory, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    source = copied.original / "checkpoint-1"
    write(source / "manifest.json", "m")
    write(source / "weights", "w")
    copy = copies.shutil.copyfile

    def faulty(first: Path, second: Path) -> Any:
        if fault == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(first, second)
        if (gone := source.with_name(f".tmp-{fault}")).exists():
            return
        source.rename(gone)
        if fault == "replaced":
            write(source / "manifest.json", "other")
            write(source / "weights", "other")

    with monkeypatch.context() as context:
        context.setattr(copies.shutil, "copyfile", faulty)
        if fault == "full":
            with pytest.raises(CheckpointError, match=r"run/checkpoint-1: could not be written \(No space left on dev"):
                copied.update()
        else:
            copied.update()
    assert files(copied.copy) == {}
    copied.update()
    expected = {"full": {"checkpoint-1/manifest.json": "m", "checkpoint-1/weights": "w"}, "deleted": {}}
    other = {"checkpoint-1/manifest.json": "other", "checkpoint-1/weights": "other"}
    assert files(copied.copy) == expected.get(fault, other)


def test_the_record_is_never_ahead_of_the_checkpoints(copied: CopiedDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    write(copied.original / "trajectory.json", "trains")
    copied.update()
    write(copied.original / "checkpoint-9" / "weights", "w")
    write(copied.original / "trajectory.json", "ended at 9")

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(copies.shutil, "copyfile", full)
        with pytest.raises(CheckpointError):
            copied.update()
    assert files(copied.copy) == {"trajectory.json": "trains"}
    copied.update()
    assert files(copied.copy) == {"trajectory.json": "ended at 9", "checkpoint-9/weights": "w"}
