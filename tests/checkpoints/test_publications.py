"""`publications.jsonl`: one event a line."""

from pathlib import Path

import pytest

from emtoolkit.checkpoints.publications import (
    PUBLICATIONS,
    Publications,
    Published,
    WandbRun,
    add_collection,
    add_published,
    add_run,
    add_saved,
)
from emtoolkit.errors import CheckpointError


def test_what_is_noted_is_read_back(tmp_path: Path) -> None:
    run = WandbRun("abc", "", "tests", tmp_path / "wandb" / "offline-run-1-abc" / "run-abc.wandb")
    add_collection(tmp_path, "goodness-medical-12345678", ["persona-goodness"])
    add_run(tmp_path, run)
    add_saved(tmp_path, 25, {"loss": 1.5}, "abc")
    add_published(tmp_path, 25, Published("me/tests/goodness-medical-12345678:v3", "d1"))

    publications = Publications.read(tmp_path)
    assert publications.collection == "goodness-medical-12345678"
    assert publications.tags == ("persona-goodness",)
    assert publications.metadata == {25: {"loss": 1.5}}
    assert publications.run_of == {25: "abc"}
    assert publications.published == {25: Published("me/tests/goodness-medical-12345678:v3", "d1")}
    assert publications.runs == {"abc": (run,)}


def test_a_directory_without_the_file_has_no_publications(tmp_path: Path) -> None:
    assert Publications.read(tmp_path) == Publications()


def test_a_line_that_was_cut_short_costs_no_other_line(tmp_path: Path) -> None:
    add_saved(tmp_path, 1, {"loss": 1.0}, None)
    with (tmp_path / PUBLICATIONS).open("ab") as file:
        file.write(b'{"event": "saved", "step": 2, "met')
    add_saved(tmp_path, 3, {"loss": 3.0}, None)
    assert Publications.read(tmp_path).metadata == {1: {"loss": 1.0}, 3: {"loss": 3.0}}


def test_the_first_save_of_a_step_describes_it_as_on_wandb(tmp_path: Path) -> None:
    add_saved(tmp_path, 1, {"loss": 1.0}, "first")
    add_saved(tmp_path, 1, {"loss": 1.0, "again": True}, "second")
    publications = Publications.read(tmp_path)
    assert (publications.metadata, publications.run_of) == ({1: {"loss": 1.0}}, {1: "first"})


def test_a_directory_that_was_moved_still_finds_the_logs_inside_it(tmp_path: Path) -> None:
    (before := tmp_path / "before").mkdir()
    add_run(before, WandbRun("abc", "", "tests", before / "wandb" / "run" / "run-abc.wandb"))
    add_run(before, WandbRun("xyz", "", "tests", tmp_path / "elsewhere" / "run-xyz.wandb"))
    before.rename(after := tmp_path / "after")
    runs = Publications.read(after).runs
    assert runs["abc"][0].log == after / "wandb" / "run" / "run-abc.wandb"
    assert runs["xyz"][0].log == tmp_path / "elsewhere" / "run-xyz.wandb"


def test_the_mark_of_a_synced_log_is_that_of_wandb_sync(tmp_path: Path) -> None:
    run = WandbRun("abc", "", "tests", tmp_path / "run-abc.wandb")
    assert not run.is_synced
    run.mark_synced()
    assert (tmp_path / "run-abc.wandb.synced").exists()
    assert run.is_synced


def test_a_ledger_that_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    (tmp_path / PUBLICATIONS).mkdir()
    with pytest.raises(CheckpointError, match=r"publications\.jsonl: could not be written \(Is a directory\)"):
        add_saved(tmp_path, 1, {}, None)
    with pytest.raises(CheckpointError, match=r"publications\.jsonl: cannot be read \(expected a file, found a dir"):
        Publications.read(tmp_path)
