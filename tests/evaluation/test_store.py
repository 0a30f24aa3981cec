"""The store: what was added is there, a torn line is not, and processes do not disturb each other."""

from pathlib import Path

import pytest

from emtoolkit.errors import CheckpointError
from emtoolkit.evaluation.store import Store

KEY = "ab" * 32


def test_what_was_added_is_read_by_the_next_process(tmp_path: Path) -> None:
    store = Store(tmp_path, "answers")
    store.add(KEY, {"a/0": {"text": 'später\n"x"'}})
    store.add(KEY, {"a/1": {"text": ""}})
    assert Store(tmp_path, "answers").read(KEY) == {"a/0": {"text": 'später\n"x"'}, "a/1": {"text": ""}}
    assert Store(tmp_path, "verdicts").read(KEY) == {}


def test_a_line_that_a_kill_cut_off_is_ignored_and_the_rest_stays(tmp_path: Path) -> None:
    store = Store(tmp_path, "answers")
    store.add(KEY, {"a/0": {"text": "one"}, "a/1": {"text": "two"}})
    (path,) = tmp_path.rglob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-4])
    again = Store(tmp_path, "answers")
    assert again.read(KEY) == {"a/0": {"text": "one"}}
    again.add(KEY, {"a/1": {"text": "two"}})
    assert Store(tmp_path, "answers").read(KEY) == {"a/0": {"text": "one"}, "a/1": {"text": "two"}}


def test_two_writers_keep_what_both_added(tmp_path: Path) -> None:
    first, second = Store(tmp_path, "answers"), Store(tmp_path, "answers")
    assert first.read(KEY) == second.read(KEY) == {}
    first.add(KEY, {"a/0": {"text": "one"}})
    second.add(KEY, {"a/0": {"text": "one"}, "a/1": {"text": "two"}})
    assert Store(tmp_path, "answers").read(KEY) == {"a/0": {"text": "one"}, "a/1": {"text": "two"}}


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    store = Store(tmp_path, "answers")
    store.add(KEY, {"a/0": {"text": "one"}})
    (path,) = tmp_path.rglob("*.jsonl")
    before = path.read_bytes()
    store.add(KEY, {"a/0": {"text": "one"}})
    assert path.read_bytes() == before


def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "answers").write_text("a file is in the way")
    with pytest.raises(CheckpointError, match=r"cannot be written .*the same command continues"):
        Store(tmp_path, "answers").add(KEY, {"a/0": {}})


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, "answers")
    store.add(KEY, {"a/0": {"text": "one"}})
    (path,) = tmp_path.rglob("*.jsonl")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        store.add(KEY, {"a/1": {"text": "two"}})
    assert path.read_bytes() == before
