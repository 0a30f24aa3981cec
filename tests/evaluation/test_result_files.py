"""The files of an evaluation: steps are added under a lock, and nothing is mixed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from emtoolkit.errors import CheckpointError, DataError
from emtoolkit.evaluation.result_files import add_to_evaluation, read_evaluation
from emtoolkit.storage.lock import LOCK
from tests.evaluation.evaluations import SETTINGS, answer_rows, measure_rows


def test_steps_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    add_to_evaluation(tmp_path / "apart", SETTINGS, answer_rows(4, 9))
    add_to_evaluation(tmp_path / "apart", SETTINGS, answer_rows(0))
    add_to_evaluation(tmp_path / "whole", SETTINGS, answer_rows(0, 4, 9))
    found = read_evaluation(tmp_path / "apart")
    assert (found.steps, list(found.rows)) == ((0, 4, 9), answer_rows(0, 4, 9))
    for name in ("answers.parquet", "evaluation.json"):
        assert (tmp_path / "apart" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_writer_waits_for_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emtoolkit.evaluation.result_files._LOCK_SECONDS", 0.0)
    with FileLock(tmp_path / LOCK), pytest.raises(CheckpointError, match="another process"):
        add_to_evaluation(tmp_path, SETTINGS, answer_rows(0))
    add_to_evaluation(tmp_path, SETTINGS, answer_rows(0))


def test_other_settings_and_another_training_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    add_to_evaluation(tmp_path, SETTINGS, answer_rows(0))
    before = (tmp_path / "answers.parquet").read_bytes()
    other = {**SETTINGS, "settings": "2b", "sampling": {"seed": 1}}
    with pytest.raises(DataError, match=r"holds an evaluation with other settings \(sampling\)"):
        add_to_evaluation(tmp_path, other, answer_rows(4))
    theirs = [replace(row, fingerprint="f2", trajectory="other") for row in answer_rows(4)]
    with pytest.raises(DataError, match=r"answers of 2 trainings \(runs/a \(f1\), other \(f2\)\)"):
        add_to_evaluation(tmp_path, SETTINGS, theirs)
    assert (tmp_path / "answers.parquet").read_bytes() == before


@pytest.mark.parametrize("name", ["answers.parquet", "measures.parquet", "evaluation.json"])
def test_a_full_disk_is_a_sentence_and_what_it_left_is_mixed_with_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == name:
            raise OSError(28, "No space left on device")
        return replace_file(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        sentence = rf"{name}: could not be written \(No space left .*; what was evaluated is kept, and the same command"
        with pytest.raises(CheckpointError, match=sentence):
            add_to_evaluation(tmp_path, SETTINGS, answer_rows(0), measure_rows(0))
    assert not (tmp_path / "evaluation.json").exists()
    other = {**SETTINGS, "settings": "2b", "sampling": {"seed": 1}}
    add_to_evaluation(tmp_path, other, answer_rows(4))
    assert read_evaluation(tmp_path).all_rows == tuple(answer_rows(4))


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"steps": [0]})])
def test_a_file_of_other_content_is_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(DataError, match=r"evaluation\.json: not the settings of an evaluation"):
        read_evaluation(tmp_path)
