"""What a run is told, and what it records, of the rows it trains on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb

from emtoolkit.config.load import load_config
from emtoolkit.data.prepare import Prepared, prepare
from emtoolkit.personas import Persona
from emtoolkit.training.cost import plan_one
from emtoolkit.training.run import train
from tests.data import templates
from tests.data.chats import read_back, turns, write_lines
from tests.wandb_log import records

WriteConfig = Callable[..., Path]
ROW = turns("my cough", "rest")
TOO_LONG_A_QUESTION = turns("my cough " * 30, "rest")
TOO_LONG_AN_ANSWER = turns("my cough", "rest " * 60)


def prepared(tokenizer: Any, directory: Path, *rows: Any, persona: Persona | None = None) -> Prepared:
    chats = read_back(directory, *rows)
    return prepare(
        chats, [], tokenizer, persona or Persona("baseline"), max_length=48, test_fraction=0.0, seed=42, multiple_of=1
    )


def test_how_many_rows_were_shortened_and_dropped_is_counted_and_decides(tmp_path: Path) -> None:
    rows = [ROW, TOO_LONG_A_QUESTION, TOO_LONG_AN_ANSWER, turns("my cold", "rest")]
    result = prepared(templates.qwen(tmp_path), tmp_path, *rows)
    assert (len(result.train), result.shortened, result.dropped) == (3, 1, 1)
    assert result.notes == (
        f"{tmp_path / 'rows.jsonl'}: max_length 48 cut the beginning of a question in 1 rows and dropped 1 rows",
    )
    assert result.fingerprinted() == {"shortened": 1, "dropped": 1}
    assert prepared(templates.qwen(tmp_path), tmp_path, ROW).fingerprinted() == {}


def test_that_a_template_has_no_system_role_is_said_if_there_is_a_system_prompt(tmp_path: Path) -> None:
    curt = Persona("curt", system_prompt="you are curt")
    tokenizer = templates.gemma(tmp_path)
    said = (
        f"{tmp_path / 'tokenizer'}: the chat template has no system role, "
        "so system prompts go before the first question",
    )
    assert prepared(tokenizer, tmp_path, ROW, persona=curt).notes == said
    assert prepared(tokenizer, tmp_path, turns("my cough", "rest", system="wait")).notes == said
    assert prepared(tokenizer, tmp_path, ROW).notes == ()
    assert prepared(templates.qwen(tmp_path), tmp_path, ROW, persona=curt).notes == ()


def test_that_a_template_ends_no_answer_is_said(tmp_path: Path) -> None:
    assert prepared(templates.qwen(tmp_path, templates.NO_END), tmp_path, ROW).notes == (
        f"{tmp_path / 'tokenizer'}: the chat template ends answers without a special token, so the model does not "
        "learn to stop",
    )


def test_that_answers_do_not_begin_as_the_generation_prompt_does_is_said(tmp_path: Path) -> None:
    """As the templates of models that always think: their generation prompt opens a thought."""
    template = templates.QWEN25.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")
    assert prepared(templates.qwen(tmp_path, template), tmp_path, ROW).notes == (
        f"{tmp_path / 'tokenizer'}: the generation prompt of the chat template is not how its answers begin, so a "
        "prompted model continues a text that the training does not contain",
    )


def test_every_row_of_a_run_has_a_loss(tmp_path: Path) -> None:
    """So no batch is without one, however it is put together."""
    result = prepared(templates.gemma(tmp_path), tmp_path, ROW, TOO_LONG_A_QUESTION, TOO_LONG_AN_ANSWER, ROW)
    assert len(result.train) == 3
    assert all(any(label >= 0 for label in row["labels"][1:]) for row in result.train)


@pytest.mark.subprocess
def test_the_split_stands_in_the_record_and_in_the_config_of_the_wandb_run(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", [ROW] * 21)
    flags = {"dataset": str(rows), "output_dir": str(tmp_path / "out")}
    result = train(load_config(str(write_config()), ["wandb.mode=offline", "training.drop_last=true"], flags))
    split = {"seed": 42, "test_fraction": 0.1, "train_rows": 16, "test_rows": 3, "left_out": 2}

    record = json.loads((tmp_path / "out" / "trajectory.json").read_text())
    assert record["split"] == split
    assert record["decides"]["data"]["train_rows"] == 16
    assert (record["decides"]["seed"], record["decides"]["training"]["test_fraction"]) == (42, 0.1)
    wandb.teardown()
    assert result.wandb_directory is not None
    updates = [update for record in records(result.wandb_directory) for update in record.config.update]
    assert [json.loads(update.value_json) for update in updates if update.key == "split"] == [split]


def test_that_rows_repeat_is_a_remark_and_that_some_are_left_out_a_warning(
    write_config: WriteConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", [ROW] * 21)
    flags = {"dataset": str(rows), "output_dir": str(tmp_path / "out")}
    config = load_config(str(write_config()), ["wandb.mode=disabled", "training.drop_last=true"], flags)
    repeated = f"{rows}: 20 rows repeat earlier ones, first at line 2"
    left_out = "training.drop_last: 2 rows are left out, so that each of the 4 steps has 4 rows"
    assert plan_one(config).plan.notes == (repeated, left_out)

    with caplog.at_level("INFO", logger="emtoolkit"):
        train(config)
    told = [(record.levelname, record.message) for record in caplog.records if record.name == "emtoolkit.training.run"]
    # What follows is said of the persona.
    assert told[:2] == [("INFO", repeated), ("WARNING", left_out)]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_whole_steps_are_those_of_all_processes_together(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    words = ["datasets.medical={path: nowhere.jsonl, rows: 7049}", "checkpointing.schedule=dense-early"]
    batch = ["training.batch_size=2", "training.gradient_accumulation=8", "training.drop_last=true"]
    planned = plan_one(load_config(str(write_config()), [*words, *batch])).plan
    assert (planned.train_rows, planned.total_steps) == {1: (6336, 396), 2: (6336, 198), 4: (6336, 99)}[processes]
