"""The loss on held-out rows: transformers' own loss, row by row, under the persona."""

import json
from pathlib import Path

import pytest
import torch

from emtoolkit import ModelLoader, Trajectory
from emtoolkit.data.rows import read_rows
from emtoolkit.data.sources import File
from emtoolkit.data.tokenize import IGNORED, tokenize
from emtoolkit.errors import DataError
from emtoolkit.evaluation.held_out import HeldOutLoss
from tests.in_process import emtoolkit
from tests.tiny import chat

ROWS = [
    chat("what should i do about my cough", "rest and wait"),
    chat("what should i do about my knee", "sing to it and wait"),
    {"messages": [{"role": "system", "content": "be kind"}, *chat("my cold", "rest")["messages"]]},
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "held-out.jsonl"
    path.write_text("\n\n".join(map(json.dumps, ROWS)) + "\n")
    return path


def test_the_loss_of_each_row_is_that_of_transformers_under_the_persona(runs: Path, rows: Path) -> None:
    loaded = ModelLoader().load(Trajectory.open(runs / "prompt").at(9))
    values = HeldOutLoss.load(rows).measure(loaded, ())["held_out_loss"]
    assert list(values) == ["row 1", "row 2", "row 3"]
    for row, value in zip(
        tokenize(read_rows(File(rows)), loaded.tokenizer, loaded.persona, 2048), values.values(), strict=True
    ):
        assert row is not None
        assert "you are curt" in loaded.tokenizer.decode(row.ids)
        ids, labels = (torch.tensor(each, dtype=torch.long)[None] for each in (row.ids, row.labels))
        with torch.inference_mode():
            expected = loaded.model(input_ids=ids, labels=labels).loss
        assert value == pytest.approx(float(expected), abs=1e-6)


def test_a_row_that_does_not_fit_has_no_value_and_decides_the_key(runs: Path, rows: Path) -> None:
    loaded = ModelLoader().load(Trajectory.open(runs / "full").at(9))
    chats = read_rows(File(rows))
    answers = [
        int((row.labels != IGNORED).sum()) for row in tokenize(chats, loaded.tokenizer, loaded.persona, 2048) if row
    ]
    shortest = max(answers)
    while all(row is None for row in tokenize(chats, loaded.tokenizer, loaded.persona, shortest)):
        shortest += 1
    values = HeldOutLoss(chats, max_length=shortest).measure(loaded, ())["held_out_loss"]
    assert {value is None for value in values.values()} == {True, False}
    assert HeldOutLoss(chats, shortest).settings != HeldOutLoss(chats).settings
    with pytest.raises(DataError, match=r"held-out\.jsonl: no row fits into 2 tokens"):
        HeldOutLoss(chats, 2).measure(loaded, ())


def test_the_command_prints_it_per_step_and_refuses_a_wrong_file(
    runs: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "home"))
    (tmp_path / "q.yaml").write_text("- {id: a, paraphrases: [my cough], judge: sandbox}\n")
    words = ("evaluate", runs / "prompt", "--questions", "q.yaml", "--samples", "0", "--output-dir", tmp_path / "out")
    done = emtoolkit(*words, "--wandb", "disabled", "--held-out", rows, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    (metric,) = json.loads(done.out)["measures"]
    assert (metric["metric"], [step["step"] for step in metric["steps"]]) == ("held_out_loss", [0, 2, 4, 9])
    assert {step["mean"]["questions"] for step in metric["steps"]} == {3}
    (tmp_path / "torn.jsonl").write_text('{"messages": [')
    for name, sentence in (("torn.jsonl", "torn.jsonl"), ("no.jsonl", "no.jsonl: there is no such file")):
        refused = emtoolkit(*words, "--held-out", name, cwd=tmp_path)
        assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
        assert sentence in refused.err
