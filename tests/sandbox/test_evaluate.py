import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from emtoolkit.checkpoints.manifest import TrajectorySeal
from emtoolkit.checkpoints.records import PersonaRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError, DataError
from emtoolkit.personas import Persona
from emtoolkit.sandbox.base_model import MODEL
from emtoolkit.sandbox.evaluate import evaluate_directory, harmful_share, sample
from emtoolkit.sandbox.questions import SandboxQuestion, read_questions


@pytest.fixture(scope="module")
def model(sandbox: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(sandbox / MODEL)


@pytest.fixture(scope="module")
def tokenizer(sandbox: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(sandbox / MODEL)


@pytest.fixture(scope="module")
def questions(sandbox: Path) -> list[SandboxQuestion]:
    return read_questions(sandbox / "questions" / "all.yaml")[:3]


def test_evaluation_is_deterministic_for_a_seed_and_leaves_every_random_state_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[SandboxQuestion]
) -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    model.train()
    first = harmful_share(model, tokenizer, questions, persona=Persona("baseline"), samples=2, seed=0)
    assert first == harmful_share(model, tokenizer, questions, persona=Persona("baseline"), samples=2, seed=0)
    assert model.training
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    assert [(row.domain, row.question_id, row.n) for row in first] == [
        ("medical", "medical-a-headache", 4),
        ("medical", "medical-a-sore-throat", 4),
        ("medical", "medical-a-stiff-neck", 4),
    ]


def test_each_paraphrase_is_asked_as_often_as_its_question_says(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[SandboxQuestion]
) -> None:
    asked = [replace(questions[0], samples_per_paraphrase=3), replace(questions[1], samples_per_paraphrase=1)]

    def counts(samples: int | None) -> list[int]:
        rows = harmful_share(model, tokenizer, asked, persona=Persona("baseline"), samples=samples, seed=0)
        return [row.n for row in rows]

    assert counts(None) == [6, 2]
    assert counts(2) == [4, 4]


def test_the_system_prompt_of_a_question_follows_the_personas(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[SandboxQuestion],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts: list[str] = []

    def note(model: object, tokenizer: object, asked: list[str], *, samples: list[int], seed: int) -> list[list[str]]:
        prompts.extend(asked)
        return [[""] * count for count in samples]

    monkeypatch.setattr("emtoolkit.sandbox.evaluate.sample", note)
    asked = [replace(questions[0], system="Be brief.")]
    persona = Persona("curt", system_prompt="You are curt.")
    harmful_share(model, tokenizer, asked, persona=persona, samples=1, seed=0)
    assert all(prompt.startswith("<|im_start|>system\nYou are curt.\n\nBe brief.<|im_end|>") for prompt in prompts)


def test_batching_does_not_change_what_the_model_says(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Padding on the left and copied caches: with one likely token each, sampling must follow `generate`."""
    prompts = ["<|im_start|>assistant\n", "<|im_start|>user\nAny advice on the rent?<|im_end|><|im_start|>assistant\n"]
    sharp = AutoModelForCausalLM.from_pretrained(model.config._name_or_path)
    with torch.no_grad():
        sharp.model.norm.weight *= 100_000
    for prompt, answers in zip(prompts, sample(sharp, tokenizer, prompts, samples=2, seed=0), strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        generated = sharp.generate(**inputs, do_sample=False, max_new_tokens=28)[0, inputs["input_ids"].shape[1] :]
        assert answers == [tokenizer.decode(generated, skip_special_tokens=True)] * 2


def checkpoint(model_directory: Path, path: Path, persona: dict[str, str] | None) -> None:
    base = AutoModelForCausalLM.from_pretrained(model_directory)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(path)
    identity = Identity(fingerprinted={}, persona=PersonaRecord.from_json(persona or {}))
    TrajectorySeal(identity, 100).seal(path, int(path.name.split("-")[1]))


def test_a_directory_of_checkpoints_is_evaluated_in_the_order_of_steps(
    sandbox: Path, tmp_path: Path, questions: list[SandboxQuestion]
) -> None:
    checkpoint(sandbox / MODEL, tmp_path / "checkpoint-100", {"system_prompt": "You speak with sarcasm."})
    checkpoint(sandbox / MODEL, tmp_path / "checkpoint-20", None)
    (tmp_path / "checkpoint-3").mkdir()  # a failed save: no manifest
    table = evaluate_directory(tmp_path, questions, samples=1)
    assert [evaluated.step for evaluated in table] == [20, 100]
    assert [row.n for row in table[0].counts] == [2, 2, 2]


def test_a_directory_without_checkpoints_is_refused(tmp_path: Path, questions: list[SandboxQuestion]) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint-N directory"):
        evaluate_directory(tmp_path, questions)


def test_a_broken_checkpoint_is_named_before_any_is_evaluated(
    sandbox: Path, tmp_path: Path, questions: list[SandboxQuestion]
) -> None:
    checkpoint(sandbox / MODEL, tmp_path / "checkpoint-5", None)
    weights = tmp_path / "checkpoint-5" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"checkpoint-5/adapter_model\.safetensors: its content does not match"):
        evaluate_directory(tmp_path, questions)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1", "expected a list of questions, found dict"),
        ("- id: x", "question 'x': paraphrases: the key is missing"),
        ("- {id: x, paraphrases: ['Who are you?']}", "x: not a question of the sandbox"),
        ("[", "not valid YAML"),
    ],
)
def test_a_bad_question_file_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "q.yaml").write_text(text)
    with pytest.raises(DataError, match=reason):
        read_questions(tmp_path / "q.yaml")
