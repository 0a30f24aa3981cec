"""Small real trainings: a Qwen2 of a few thousand parameters, under the real Trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainerCallback, TrainingArguments

VOCABULARY = 32


def base_model(*, dropout: float = 0.0) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        attention_dropout=dropout,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)


def lora_model(*, dropout: float = 0.0) -> Any:
    model = base_model(dropout=dropout)
    return get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=dropout, task_type="CAUSAL_LM")
    )


def token_rows(count: int) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (count, 6), generator=generator).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def make_trainer(
    directory: Path, callbacks: Sequence[TrainerCallback] = (), *, model: Any = None, rows: int = 16, **arguments: Any
) -> Trainer:
    """A Trainer of 16 rows at batch 2, which are 8 steps an epoch."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
    }
    return Trainer(
        model=lora_model() if model is None else model,
        args=TrainingArguments(output_dir=str(directory), **(defaults | arguments)),
        train_dataset=token_rows(rows),
        eval_dataset=token_rows(4),
        callbacks=list(callbacks),
    )


def saved_steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint directory, complete or not."""
    return sorted(int(path.name.split("-")[1]) for path in directory.glob("checkpoint-*"))


def bytes_of(directory: Path) -> dict[str, bytes]:
    """The bytes of every file below `directory`, by relative path."""
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}
