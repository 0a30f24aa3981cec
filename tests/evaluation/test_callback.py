"""`GenerationEvalCallback`: a training with it is the training without it."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    TrainerCallback,
)

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.evaluation.judges import JudgedAnswer, Verdict
from emtoolkit.evaluation.undisturbed import undisturbed
from tests.evaluation.evaluations import WordJudge
from tests.evaluation.probes import ASKED, Train, probe, steps, weights
from tests.saving.trainings import bytes_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]


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
