"""`GenerationEvalCallback`: every chosen step has its answers and metrics, once."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    TrainerCallback,
)

from emtoolkit import Schedule
from emtoolkit.evaluation.undisturbed import undisturbed
from emtoolkit.personas import Persona
from tests.evaluation.evaluations import QUESTIONS, WordJudge
from tests.evaluation.probes import ASKED, Train, lines, probe, steps
from tests.marks import STARTS_PROCESSES
from tests.wandb_log import artifacts, records

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]


def test_every_answer_has_a_line_and_every_step_its_metrics(train: Train, tmp_path: Path) -> None:
    train([probe(judge=WordJudge(), persona=Persona("curt", system_prompt="you are curt"), eval_schedule="0,3")])
    answers, metrics = lines(tmp_path / "run", "answers"), lines(tmp_path / "run", "metrics")
    assert [line["step"] for line in metrics] == [0, 3, 6]
    assert [(line["step"], line["question"], line["paraphrase"], line["sample"]) for line in answers] == [
        (step, question.id, paraphrase, sample)
        for step in (0, 3, 6)
        for question in QUESTIONS
        for paraphrase in range(len(question.paraphrases))
        for sample in range(question.samples_per_paraphrase)
    ]
    assert {line["persona"] for line in answers} == {"curt"}
    assert all("you are curt" in line["prompt"] for line in answers)
    assert answers[0]["wording"] == ASKED
    for line in metrics:
        own = [answer for answer in answers if answer["step"] == line["step"]]
        misaligned = [answer for answer in own if answer["aligned"] == 0.0]
        betley = line["em_rates"][0]
        assert (betley["definition"], betley["misaligned"]) == ("betley", len(misaligned))
        assert betley["among"] == sum(answer["aligned"] is not None for answer in own)
        assert sum(line["statuses"].values()) == line["answers"] == len(own) == 13
        assert line["truncated"] == sum(answer["truncated"] for answer in own) / 13
    texts = {step: [answer["answer"] for answer in answers if answer["step"] == step] for step in (0, 3, 6)}
    assert metrics[0]["changed"] is None
    assert metrics[1]["changed"] == sum(a != b for a, b in zip(texts[0], texts[3], strict=True)) / 13


def test_without_a_judge_there_are_answers_and_no_rates(train: Train, tmp_path: Path) -> None:
    train([probe(questions=[ASKED, "my cough"], samples=2, eval_at_steps=[1], eval_schedule=None)])
    answers, metrics = lines(tmp_path / "run", "answers"), lines(tmp_path / "run", "metrics")
    assert [(line["step"], line["question"], line["sample"]) for line in answers] == [
        (step, question, sample) for step in (1, 6) for question in (ASKED, "my cough") for sample in (0, 1)
    ]
    assert {(line["judge"], line["aligned"], line["status"]) for line in answers} == {(None, None, None)}
    assert all("em_rates" not in line for line in metrics)


def test_the_answers_are_those_of_an_evaluation_of_the_saved_checkpoint(train: Train, tmp_path: Path) -> None:
    """The noise of both is one function of seed, wording, sample, position and token."""
    trainer = train([probe(eval_schedule="6")])
    again = probe().check(trainer.processing_class, 6)
    with undisturbed(trainer.model):
        texts = [answer.text for answer in again.answers(trainer.model)]
    assert [line["answer"] for line in lines(tmp_path / "run", "answers")] == texts


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"eval_schedule": "0,3"}, [0, 3, 6]),
        ({"eval_schedule": Schedule.parse("every:4")}, [4, 6]),
        ({"eval_steps": 2}, [2, 4, 6]),
        ({"eval_steps": 0.5}, [3, 6]),
        ({"eval_at_steps": [0, 1]}, [0, 1, 6]),
    ],
)
def test_each_way_to_choose_the_steps(
    train: Train, tmp_path: Path, options: dict[str, Any], expected: list[int]
) -> None:
    train([probe(questions=[ASKED], **({"eval_schedule": None} | options))])
    assert steps(tmp_path / "run") == expected


class StopAt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == 3


class StopAtTheEndOfAnEpoch(TrainerCallback):
    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


def test_a_training_that_stops_early_has_its_last_step_once(train: Train, tmp_path: Path) -> None:
    train([probe(questions=[ASKED], eval_schedule="every:5"), StopAt()], name="a", num_train_epochs=3)
    assert steps(tmp_path / "a") == [3]
    stop = StopAtTheEndOfAnEpoch()
    train([probe(questions=[ASKED], eval_schedule="5"), stop], name="b", num_train_epochs=3, eval_strategy="epoch")
    assert steps(tmp_path / "b") == [5, 6]


def test_a_resumed_training_repeats_no_step_and_ends_with_the_lines_of_a_whole_one(
    train: Train, tmp_path: Path
) -> None:
    saved = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    train([probe(questions=[ASKED], eval_schedule="0,every:1")], name="whole", num_train_epochs=2)
    train([probe(questions=[ASKED], eval_schedule="0,every:1"), StopAt()], name="run", **saved)
    home = next((tmp_path / "run" / "probes").iterdir())
    # A kill cut the last line off.
    (home / "answers.jsonl").write_text((home / "answers.jsonl").read_text() + '{"step": 4, "quest')
    train(
        [probe(questions=[ASKED], eval_schedule="0,every:1")],
        name="run",
        resume=tmp_path / "run" / "checkpoint-2",
        **saved,
    )
    assert steps(tmp_path / "run") == list(range(13))
    for name in ("answers", "metrics"):
        found, expected = (lines(tmp_path / run, name) for run in ("run", "whole"))
        for line in (*found, *expected):
            line.pop("seconds", None)
        assert found == expected


def test_another_training_into_the_directory_mixes_nothing(train: Train, tmp_path: Path) -> None:
    train([probe(questions=[ASKED], eval_schedule="1")])
    train([probe(questions=[ASKED], eval_schedule="2")])
    train([probe(questions=[ASKED], eval_schedule="2", seed=5)])
    found = {path.parent.name: path.read_text().count("\n") for path in tmp_path.glob("run/probes/*/metrics.jsonl")}
    assert len(found) == 3
    assert sum(name.endswith("-earlier-1") for name in found) == 1


@pytest.mark.parametrize("_", STARTS_PROCESSES)
def test_an_active_wandb_run_has_the_table_and_the_metrics_on_the_axis_of_the_trainer(
    train: Train, tmp_path: Path, _: Any
) -> None:
    import wandb

    run = wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(quiet=True))
    train([probe(judge=WordJudge())], report_to=["wandb"], logging_steps=1)
    run.finish()
    # The log is complete when the client's service has ended.
    wandb.teardown()
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(Path(run.dir).parent)
        if record.HasField("history")
    ]
    asked = [row for row in history if "probe/truncated" in row]
    tables = [row for row in history if "probe/answers/_type" in row]
    assert [row["train/global_step"] for row in asked] == [0, 2, 4, 6]
    assert [row["train/global_step"] for row in tables] == [0, 2, 4, 6]
    metrics = lines(tmp_path / "run", "metrics")
    for row, table, line in zip(asked, tables, metrics, strict=True):
        assert row["probe/em_rate_betley"] == pytest.approx(line["em_rates"][0]["rate"])
        assert (table["probe/answers/_type"], table["probe/answers/nrows"]) == ("table-file", 13)
    assert [a.type for a in artifacts(Path(run.dir).parent)].count("run_table") == 4
