"""`GenerationEvalCallback`: a training with it is the training without it, and what it logs is complete."""

import json
import logging
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from emtoolkit import GenerationEvalCallback, Schedule, ScheduledCheckpointCallback
from emtoolkit.errors import ConfigError, DataError, ScheduleError, UserError
from emtoolkit.evaluation import callback as module
from emtoolkit.evaluation.judges import JudgedAnswer, Verdict
from emtoolkit.evaluation.undisturbed import undisturbed
from emtoolkit.personas import Persona
from tests.evaluation.evaluations import QUESTIONS, WordJudge
from tests.marks import STARTS_PROCESSES
from tests.saving.trainings import bytes_of
from tests.wandb_log import artifacts, records

pytestmark = pytest.mark.slow

ASKED = "what should i do about my cough"


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "home"))


Train = Callable[..., Trainer]


@pytest.fixture
def train(world: Path, tmp_path: Path) -> Train:
    """Train the tiny model for 6 steps under `callbacks` in the directory `name`."""

    def run(
        callbacks: Sequence[TrainerCallback] = (),
        *,
        name: str = "run",
        full: bool = False,
        adapter: Any = None,
        resume: Path | None = None,
        tokenizer: bool = True,
        **arguments: Any,
    ) -> Trainer:
        known = AutoTokenizer.from_pretrained(world / "model")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(world / "model", attention_dropout=0.1)
        if not full:
            lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
            model = get_peft_model(model, adapter or lora)
        ids = [known(f"{ASKED} sing to it and wait")["input_ids"] for _ in range(12)]
        rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
        defaults: dict[str, Any] = {
            "per_device_train_batch_size": 2,
            "num_train_epochs": 1,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 7,
        }
        trainer = Trainer(
            model=model,
            args=TrainingArguments(output_dir=str(tmp_path / name), **(defaults | arguments)),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=known if tokenizer else None,
            callbacks=list(callbacks),
        )
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return trainer

    return run


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def lines(home: Path, name: str) -> list[dict[str, Any]]:
    (found,) = home.glob(f"probes/*/{name}.jsonl")
    return [json.loads(line) for line in found.read_text().splitlines()]


def steps(home: Path) -> list[int]:
    return [line["step"] for line in lines(home, "metrics")]


def probe(**options: Any) -> GenerationEvalCallback:
    return GenerationEvalCallback(
        options.pop("questions", QUESTIONS), **({"eval_schedule": "0,every:2", "max_new_tokens": 6} | options)
    )


class RandomJudge(WordJudge):
    """Draws from every generator, as a judge may that waits between two attempts."""

    def judge(self, answers: Sequence[JudgedAnswer]) -> Sequence[Verdict]:
        random.random()
        np.random.rand()
        torch.rand(1)
        return super().judge(answers)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": True},
        {"bf16": True},
        {"full": True},
        {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True},
        {"gradient_accumulation_steps": 2, "torch_empty_cache_steps": 1},
    ],
    ids=["LoRA", "gradient checkpointing", "autocast", "all weights", "evaluations", "accumulation"],
)
def test_a_training_ends_with_the_same_bits(train: Train, tmp_path: Path, options: dict[str, Any]) -> None:
    without = train(name="without", **options)
    torch.manual_seed(99)
    asked = train([probe(judge=RandomJudge())], name="with", **options)
    before, after = weights(without), weights(asked)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert steps(tmp_path / "with") == ([0, 2, 3] if "gradient_accumulation_steps" in options else [0, 2, 4, 6])


def test_a_training_with_other_random_numbers_ends_with_other_bits(train: Train) -> None:
    """Otherwise the test above could not fail."""

    class Draw(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            torch.rand(1)

    before, after = weights(train()), weights(train([Draw()]))
    assert not all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("full", "first"), [(False, False), (True, True)])
def test_checkpoints_are_the_same_to_the_byte_whichever_callback_is_first(
    train: Train, tmp_path: Path, full: bool, first: bool
) -> None:
    def saving() -> ScheduledCheckpointCallback:
        return ScheduledCheckpointCallback("0,every:1", resume_every="2 steps", resume_at_end=True)

    train([saving()], name="without", full=full)
    both = [probe(questions=[ASKED]), saving()]
    train(both if first else both[::-1], name="with", full=full)
    # The Trainer's own files name the directory, and the manifest of a resume state has their digests.
    expected = {
        name: content
        for name, content in bytes_of(tmp_path / "without").items()
        if name.startswith("checkpoint-") or name.endswith((".pt", ".pth", ".safetensors"))
    }
    assert len(expected) > 20
    found = bytes_of(tmp_path / "with")
    assert {path: found.get(path) for path in expected} == expected
    assert steps(tmp_path / "with") == [0, 2, 4, 6]


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


def test_an_error_of_the_judge_is_one_warning_and_the_answers_stay(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(WordJudge):
        def judge(self, answers: Sequence[JudgedAnswer]) -> Sequence[Verdict]:
            raise ValueError("no such model")

    with caplog.at_level(logging.WARNING):
        trainer = train([probe(judge=Broken())])
    assert trainer.state.global_step == 6
    found = [record.getMessage() for record in caplog.records if "evaluation during training" in record.getMessage()]
    assert found == [
        "evaluation during training: the judge failed, so answers have no scores (no such model); training goes on"
    ]
    assert steps(tmp_path / "run") == [0, 2, 4, 6]
    assert {line["status"] for line in lines(tmp_path / "run", "answers")} == {"judge_error"}
    assert all(
        rate["among"] == 0 and rate["rate"] is None for rate in lines(tmp_path / "run", "metrics")[0]["em_rates"]
    )


def test_an_error_of_the_disk_or_of_the_model_is_one_warning(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "probes").write_text("a file is in the way")
    with caplog.at_level(logging.WARNING):
        assert train([probe()]).state.global_step == 6
        monkeypatch.setattr(module.Probe, "answers", lambda *words: 1 / 0)
        assert train([probe()], name="other").state.global_step == 6
    found = [record.getMessage() for record in caplog.records if "evaluation during training" in record.getMessage()]
    assert len(found) == 2
    assert "its files cannot be continued" in found[0]
    assert found[1].endswith("no answers could be sampled (division by zero); training goes on")


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


def test_an_error_of_wandb_is_one_warning(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    class Run:
        def log(self, values: Any) -> None:
            raise ConnectionResetError("the service is gone")

    monkeypatch.setattr(wandb, "run", Run())
    with caplog.at_level(logging.WARNING):
        assert train([probe()]).state.global_step == 6
    monkeypatch.setattr(wandb, "run", None)
    found = [record.getMessage() for record in caplog.records if "evaluation during training" in record.getMessage()]
    assert found == [
        "evaluation during training: W&B does not take the answers (the service is gone); training goes on"
    ]
    assert steps(tmp_path / "run") == [0, 2, 4, 6]


def test_a_server_that_hangs_stops_neither_the_training_nor_the_metrics(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    logged: list[dict[str, Any]] = []
    answered = threading.Event()

    class Run:
        def log(self, values: dict[str, Any]) -> None:
            if "probe/answers" in values:
                answered.wait()
            else:
                logged.append(values)

    monkeypatch.setattr(wandb, "run", Run())
    monkeypatch.setattr(module, "_SECONDS_FOR_WANDB", 0.1)
    with caplog.at_level(logging.WARNING):
        train([probe()])
    answered.set()
    monkeypatch.setattr(wandb, "run", None)
    assert [values["train/global_step"] for values in logged] == steps(tmp_path / "run") == [0, 2, 4, 6]
    found = [record.getMessage() for record in caplog.records if "evaluation during training" in record.getMessage()]
    assert found == [
        "evaluation during training: W&B does not take the answers (no answer for 0.1 s after the last step); training "
        "goes on"
    ]


def test_a_model_that_process_0_cannot_ask_is_a_sentence(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.WARNING):
        train([probe()], adapter=PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), name="prompt")
        monkeypatch.setattr(module, "is_sharded", lambda model: True)
        train([probe()], name="sharded")
    found = [record.getMessage() for record in caplog.records if "evaluation during training" in record.getMessage()]
    assert found == [
        f"evaluation during training: {reason}, so no question is asked during this training"
        for reason in ("an adapter of type PROMPT_TUNING has virtual tokens", "the model is spread over the processes")
    ]
    assert not list(tmp_path.glob("*/probes"))


def test_only_process_0_asks(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Probe, "answers", lambda *words: pytest.fail("another process asks"))
    monkeypatch.setattr(module, "is_sharded", lambda model: False)
    objects = {
        "model": AutoModelForCausalLM.from_pretrained(world / "model"),
        "processing_class": AutoTokenizer.from_pretrained(world / "model"),
    }
    args = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True)
    state = TrainerState(max_steps=6, is_world_process_zero=False)
    ours = probe()
    ours.on_train_begin(args, state, TrainerControl(), **objects)
    state.global_step = 6
    ours.on_step_end(args, state, TrainerControl(), **objects)
    ours.on_train_end(args, state, TrainerControl(), **objects)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "expected exactly one of eval_steps, eval_at_steps, eval_schedule; found none of them"),
        ({"eval_steps": 2, "eval_schedule": "1"}, r"found eval_steps \(2\) and eval_schedule \('1'\)"),
        ({"eval_steps": 0}, "every:0"),
        ({"eval_steps": 1.5}, "every:1"),
        ({"eval_at_steps": []}, "expected at least one term"),
        ({"eval_schedule": "evry:2"}, "evry:2"),
        ({"eval_steps": 1, "samples": 0}, "samples: 0 is not a number of answers, 1 or more"),
        ({"eval_steps": 1, "max_new_tokens": 0}, "max_new_tokens: 0 is not a number of tokens"),
        ({"eval_steps": 1, "temperature": -1.0}, "temperature: -1.0 is not a temperature"),
        ({"eval_steps": 1, "temperature": float("nan")}, "temperature: nan is not a temperature"),
        ({"eval_steps": 1, "questions": []}, r"questions: \[\] is not a question file or a list of questions"),
        ({"eval_steps": 1, "questions": ["a", "a"]}, "questions: 'a' is the id of two questions"),
        ({"eval_steps": 1, "questions": "gone.yaml"}, "gone.yaml: no such question file"),
    ],
)
def test_a_bad_option_is_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        GenerationEvalCallback(options.pop("questions", [ASKED]), **options)


def test_what_is_wrong_with_the_training_is_said_before_it_begins(train: Train) -> None:
    with pytest.raises(ScheduleError, match="step 7 is past the end of training at step 6"):
        train([probe(eval_schedule="7")])
    with pytest.raises(ConfigError, match="tokenizer: the Trainer has no processing_class"):
        train([probe()], tokenizer=False)


def test_a_tokenizer_without_a_chat_template_is_named(train: Train, world: Path) -> None:
    plain = AutoTokenizer.from_pretrained(world / "model")
    plain.chat_template = None
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        train([probe(tokenizer=plain)])


class Changing(nn.Module):
    """A module whose forward passes change everything that one may change."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.ones(2))
        self.longest = 1
        self.frozen = nn.Dropout().eval()
        self.config = type("Config", (), {})()
        self.config.layers = [1]

    def forward(self) -> None:
        self.frequencies = torch.zeros(2)
        self.longest, self.shortest = 9, 0
        self.config.layers.append(2)
        self.config.seen = True
        torch.rand(1)
        random.random()


def test_whatever_a_forward_pass_changes_is_restored() -> None:
    model = Changing().train()
    model.frozen.eval()
    states = torch.get_rng_state(), random.getstate()
    with torch.autocast("cpu", dtype=torch.bfloat16), undisturbed(model):
        assert not model.training
        assert not torch.is_autocast_cache_enabled()
        model()
    assert torch.is_autocast_cache_enabled()
    assert (model.training, model.frozen.training) == (True, False)
    assert torch.equal(model.frequencies, torch.ones(2))
    assert (model.longest, hasattr(model, "shortest")) == (1, False)
    assert vars(model.config) == {"layers": [1]}
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
