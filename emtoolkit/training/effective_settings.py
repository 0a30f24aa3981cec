"""The settings in force in a run, whoever set them: facts of the fingerprint since version 2.

Each is left out where it has the value that version 1 implied, so older fingerprints stay valid: attention as
transformers chooses it, the CPU, the precision of `training.bf16`, no compiler, and no file beside those whose digest
is the base model's.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from emtoolkit.config.sections import ModelConfig, TrainingConfig
from emtoolkit.models.architecture import implied_attention
from emtoolkit.models.base_files import tokenizer_digest
from emtoolkit.models.location import model_path
from emtoolkit.saving.float32_precision import float32_precision
from emtoolkit.saving.ranks import trains_on_cpu


def effective_settings(
    model: ModelConfig, training: TrainingConfig, environment: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """The facts that differ from what version 1 implied."""
    directory = Path(model_path(model))
    facts = {
        "attention": _attention(model),
        "device": None if (device := device_type(model)) == "cpu" else device,
        "precision": precision_of_environment(training, environment),
        "compiled": _compiler(environment),
        **float32_precision(),
        "tokenizer_files": tokenizer_digest(directory) if directory.is_dir() else None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def precision_of_environment(training: TrainingConfig, environment: Mapping[str, str] = os.environ) -> str | None:
    """The mixed precision that `accelerate launch` asks for, None if it asks for none or the config for bfloat16."""
    asked = environment.get("ACCELERATE_MIXED_PRECISION", "").lower()
    return None if training.bf16 or asked in ("", "no") else asked


def device_type(model: ModelConfig) -> str:
    """`cpu`, or the kind of accelerator that the model is trained on."""
    if model.device is not None:
        return model.device
    accelerator = None if trains_on_cpu() else torch.accelerator.current_accelerator()
    return "cpu" if accelerator is None else accelerator.type


def _attention(model: ModelConfig) -> str | None:
    if model.attn_implementation is None:
        return None
    return None if model.attn_implementation == implied_attention(model) else model.attn_implementation


def _compiler(environment: Mapping[str, str]) -> str | None:
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "").lower()
    return None if backend in ("", "no") else backend
