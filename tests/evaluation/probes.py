"""Trainings that are asked questions, and what they wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Trainer,
)

from emtoolkit import GenerationEvalCallback
from tests.evaluation.evaluations import QUESTIONS

ASKED = "what should i do about my cough"
Train = Callable[..., Trainer]


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
