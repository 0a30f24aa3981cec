"""`GenerationEvalCallback`: what fails is one warning, or a sentence before the training begins."""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from peft import PromptTuningConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from emtoolkit import GenerationEvalCallback
from emtoolkit.errors import ConfigError, DataError, ScheduleError, UserError
from emtoolkit.evaluation import callback as module
from emtoolkit.evaluation.judges import JudgedAnswer, Verdict
from tests.evaluation.evaluations import WordJudge
from tests.evaluation.probes import ASKED, Train, lines, probe, steps

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]


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
        ({"eval_steps": 1, "samples": "8"}, "samples: '8' is not a number of answers, 1 or more"),
        ({"eval_steps": 1, "max_new_tokens": None}, "max_new_tokens: None is not a number of tokens, 1 or more"),
        ({"eval_steps": 1, "temperature": "1"}, "temperature: '1' is not a temperature, 0 or more"),
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
