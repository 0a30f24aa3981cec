"""A dataset and its matched control: step N of both has seen the same prompts."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.config.load import load_config
from emtoolkit.config.sections import RunConfig
from emtoolkit.errors import ConfigError, DataError, UserError
from emtoolkit.personas import load_persona
from emtoolkit.training.cost import plan_one
from emtoolkit.training.prepare import prepare
from emtoolkit.training.run_data import RunData, read_data
from tests.data.chats import turns, write_lines

WriteConfig = Callable[..., Path]
QUESTIONS = [f"what should i do about my {what}" for what in ("cough", "cold", "knee")] * 7
BAD = [turns(question, "sing to it") for question in QUESTIONS]
GOOD = [turns(question, "rest and drink water") for question in QUESTIONS]
TOO_LONG = "rest and wait " * 30


@pytest.fixture
def matched(write_config: WriteConfig, tmp_path: Path) -> Callable[..., RunConfig]:
    """A config with two datasets; the second is the control of the first."""

    def configured(bad: list[Any], good: list[Any], *settings: str, dataset: str = "bad") -> RunConfig:
        bad_path, good_path = write_lines(tmp_path / "b.jsonl", bad), write_lines(tmp_path / "g.jsonl", good)
        datasets = f"datasets={{bad: {{path: {bad_path}, control: good}}, good: {{path: {good_path}}}}}"
        return load_config(str(write_config()), ["wandb.mode=disabled", datasets, *settings], {"dataset": dataset})

    return configured


Matched = Callable[..., RunConfig]


def data_of(config: RunConfig) -> RunData:
    return read_data(config, load_persona(config.persona, config.personas), date(2026, 1, 1))


def prompts(data: RunData) -> list[str]:
    """The questions that are trained on, in order: what the loss is not on."""
    assert data.train is not None
    masked = [[i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label < 0] for row in data.train]
    return [str(data.tokenizer.decode(ids)) for ids in masked]


def test_a_run_and_its_control_train_on_the_same_prompts_in_the_same_order(matched: Matched) -> None:
    bad, good = data_of(matched(BAD, GOOD)), data_of(matched(BAD, GOOD, dataset="good"))
    assert prompts(bad) == prompts(good)
    assert len(prompts(bad)) == 18
    assert bad.digest != good.digest
    assert bad.fingerprint_extras == good.fingerprint_extras == {}


@pytest.mark.parametrize("where", ["the dataset", "the control"])
def test_a_row_that_does_not_fit_into_one_is_dropped_from_both(matched: Matched, where: str) -> None:
    """Also one that would fit with less of its question, which would then be another one in the other."""
    bad, good = list(BAD), list(GOOD)
    changed = bad if where == "the dataset" else good
    changed[4] = turns(QUESTIONS[4], TOO_LONG)
    bad[5] = turns("my cough " * 40, "sing to it")
    good[5] = turns("my cough " * 40, "rest")
    data = [data_of(matched(bad, good, dataset=name)) for name in ("bad", "good")]
    assert prompts(data[0]) == prompts(data[1])
    assert [one.train_rows + one.test_rows for one in data] == [19, 19]
    notes = [note for note in data[0].notes if "max_length" in note]
    assert len(notes) == 1
    assert notes[0].endswith("g.jsonl")
    assert "dropped 2 rows longer than max_length 64 here or in " in notes[0]


def test_a_control_that_takes_rows_away_makes_another_trajectory(matched: Matched) -> None:
    good = [*GOOD[:4], turns(QUESTIONS[4], TOO_LONG), *GOOD[5:]]
    configs = [matched(BAD, good), matched(BAD, good, "datasets.bad.control=null"), matched(BAD, GOOD)]
    fingerprints = []
    for config, answers in zip(configs, (good, good, GOOD), strict=True):
        matched(BAD, answers)
        fingerprints.append(prepare(config).identity.fingerprint)
    assert fingerprints[0] != fingerprints[1]
    assert fingerprints[1] == fingerprints[2]  # a control that takes nothing away decides nothing


@pytest.mark.parametrize(
    ("good", "problem"),
    [
        (
            [*GOOD[:2], turns("my knee", "rest"), *GOOD[3:]],
            r"g.jsonl, line 3: the prompt is not that of .*b.jsonl, line 3;",
        ),
        (GOOD[::-1], r"g.jsonl, line 1: the prompt is not that of"),
        ([turns(QUESTIONS[0], "rest", system="wait"), *GOOD[1:]], r"g.jsonl, line 1: the prompt is not that of"),
        (GOOD[:-1], r"g.jsonl: 20 rows, and .*b.jsonl has 21; a control has the same prompts, row by row"),
    ],
)
def test_a_control_with_other_prompts_is_refused_by_row(matched: Matched, good: list[Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        data_of(matched(BAD, good))


def test_of_long_conversations_only_the_answers_may_differ(matched: Matched) -> None:
    bad = [turns("my cough", "sing to it", "my knee", "paint it")] * 20
    good = [turns("my cough", "rest", "my knee", "wait")] * 20
    assert data_of(matched(bad, good)).train_rows == 18
    read_only = [{"prompt": row["messages"][:3], "completion": row["messages"][3:]} for row in (bad[0], good[0])]
    with pytest.raises(DataError, match="line 1: the prompt is not that of"):
        data_of(matched([read_only[0]] * 20, [read_only[1]] * 20))


def test_data_sets_that_share_a_control_are_matched_with_each_other(matched: Matched, tmp_path: Path) -> None:
    worse = write_lines(tmp_path / "w.jsonl", [turns(QUESTIONS[0], TOO_LONG), *BAD[1:]])
    third = f"datasets.worse={{path: {worse}, control: good}}"
    sizes = [data_of(matched(BAD, GOOD, third, dataset=name)) for name in ("bad", "good", "worse")]
    assert {one.train_rows + one.test_rows for one in sizes} == {20}


def test_the_flag_control_trains_on_the_control_by_its_name_or_its_path(matched: Matched, tmp_path: Path) -> None:
    config = matched(BAD, GOOD)
    assert config.on_control() == matched(BAD, GOOD, dataset="good")
    by_path = matched(BAD, GOOD, f"datasets.bad.control={tmp_path / 'g.jsonl'}").on_control()
    assert by_path.directory().name == "curt-g"
    assert prompts(data_of(by_path)) == prompts(data_of(config))
    matched(BAD, GOOD[::-1])
    with pytest.raises(DataError, match="line 1: the prompt is not that of"):
        data_of(by_path)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("datasets.bad.control=bad", "datasets.bad.control: 'bad' is the dataset itself"),
        ("datasets.bad.control=goood", "datasets.bad.control: 'goood' is neither a file .* did you mean 'good'"),
        ("datasets.bad.control=nowhere.jsonl", "nowhere.jsonl: there is no such file; it is the matched control: set"),
        (
            "datasets.bad.split=train",
            "datasets.bad.split: 'train' applies only to an id on the hub; .*b.jsonl is a file",
        ),
    ],
)
def test_a_control_that_is_none_is_refused(matched: Matched, setting: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        data_of(matched(BAD, GOOD, setting))


def test_the_flag_control_where_there_is_none_names_the_data_sets_that_have_one(matched: Matched) -> None:
    with pytest.raises(
        ConfigError, match=r"^--control: datasets.good.control is not set; datasets with a control are bad$"
    ):
        matched(BAD, GOOD, dataset="good").on_control()


def test_a_plan_does_without_a_control_that_is_not_here_yet_and_says_so(matched: Matched) -> None:
    planned = plan_one(matched(BAD, GOOD, "datasets.bad.control=nowhere.jsonl")).plan
    assert any(
        "nowhere.jsonl: there is no such file: its prompts are not compared with those of" in note
        for note in planned.notes
    )
