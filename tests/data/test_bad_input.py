"""What cannot be trained on is one sentence and exit code 2, before a model is loaded or anything is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.chats import turns, write_lines
from tests.in_process import emtoolkit

WriteConfig = Callable[..., Path]


@pytest.fixture
def refused(write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The sentence that `emtoolkit train` refuses with."""
    monkeypatch.setattr(
        "emtoolkit.training.composed_model.load_base", lambda config: pytest.fail("the model was loaded")
    )

    def refused(*words: str | Path) -> str:
        done = emtoolkit("train", write_config(), "--output-dir", "out", *words, cwd=tmp_path)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert not (tmp_path / "out").exists()
        return done.err.removeprefix("emtoolkit: ").rstrip("\n")

    return refused


Refused = Callable[..., str]


def model_with_template(world: Path, directory: Path, template: str | None) -> Path:
    shutil.copytree(world / "model", directory)
    (directory / "chat_template.jinja").unlink()
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return directory


def test_a_tokenizer_without_a_chat_template(refused: Refused, world: Path, tmp_path: Path) -> None:
    model = model_with_template(world, tmp_path / "model", None)
    assert refused("--set", f"model.base={model}") == f"{model}: the tokenizer has no chat template"


def test_rows_of_which_the_loss_would_be_on_no_token(refused: Refused, world: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    model = model_with_template(world, tmp_path / "model", template)
    rows = write_lines(
        tmp_path / "rows.jsonl",
        [turns("my cough", " rest and wait"), {"messages": [{"role": "assistant", "content": "a"}]}] * 20,
    )
    assert refused("--persona", "none", "--set", f"model.base={model}", "--dataset", rows) == (
        f"{rows}, line 2: no token of the answer is left to learn from"
    )


def test_data_without_answers(refused: Refused, tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", [turns("my cough")])
    assert refused("--dataset", rows) == (
        f"{rows}, line 1: the conversation has no assistant turn to train on; add one, or remove the row"
    )


def test_fewer_rows_than_a_batch_or_with_drop_last_than_a_step(refused: Refused, tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", [turns("my cough", "rest")] * 4)
    assert refused("--dataset", rows) == "training.batch_size: 4 is more than the 3 rows to train on"
    of_one_step = ["training.batch_size=2", "training.gradient_accumulation=2", "training.drop_last=true"]
    settings = [word for setting in of_one_step for word in ("--set", setting)]
    assert refused("--dataset", rows, *settings) == (
        "training.drop_last: one step takes 4 rows, so none of the 3 rows to train on is left; set it to false, or "
        "lower batch_size or gradient_accumulation"
    )


def test_answers_that_are_all_too_long(refused: Refused, world: Path) -> None:
    assert refused("--set", "training.max_length=8") == (
        f"training.max_length: 8 is too short for every answer of {world / 'data' / 'bad.jsonl'}; raise it"
    )


def test_an_id_on_the_hub_while_offline(refused: Refused) -> None:
    assert refused("--dataset", "org/other") == (
        "org/other: no such file, no such dataset in the cache, and the hub cannot be reached (HF_HUB_OFFLINE is set)"
    )


def test_a_data_set_that_is_nowhere(refused: Refused) -> None:
    assert refused("--dataset", "medicl") == (
        "dataset: 'medicl' is neither a file (.jsonl, .jsonl.gz, .json, .parquet), nor an id on the hub such as "
        "org/name, nor one of the config's datasets: medical, medical-good; did you mean 'medical'?"
    )
    assert (
        refused("--dataset", "./rows.csv")
        == refused("--dataset", "medicl").replace("'medicl'", "'./rows.csv'").split("; did")[0]
    )


def test_the_control_of_a_data_set_that_has_none_or_another_one(refused: Refused, world: Path, tmp_path: Path) -> None:
    assert refused("--control") == "--control: datasets.medical.control is not set; datasets with a control are none"
    other = write_lines(tmp_path / "other.jsonl", [turns("my cough", "rest")] * 40)
    assert refused("--set", f"datasets.medical.control={other}", "--control").startswith(
        f"{world / 'data' / 'bad.jsonl'}, line 1: the prompt is not that of {other}, line 1; a control has"
    )


def test_the_control_is_trained_on_under_its_own_name(write_config: WriteConfig, tmp_path: Path) -> None:
    words = ["train", write_config(), "--dry-run", "--set", "datasets.medical.control=medical-good"]
    plans = [emtoolkit(*words, *more, cwd=tmp_path).out for more in (["--control"], ["--dataset", "medical-good"])]
    assert plans[0] == plans[1]
    assert "outputs/curt-medical-good" in plans[0]
