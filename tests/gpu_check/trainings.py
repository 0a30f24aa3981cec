"""The training of the checks: a Qwen2 with LoRA or all weights trained, on rows of many lengths."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed

from tests.gpu_check.device import Device

Kind = Literal["lora", "full"]
VOCABULARY = 1000


def make_model(device: Device, kind: Kind, dtype: torch.dtype) -> Any:
    """The model on the device: 50,000 parameters in the small form, otherwise 50 million."""
    set_seed(0)
    width = 32 if device.small else 1024
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2 if device.small else 6,
        num_attention_heads=4 if device.small else 8,
        num_key_value_heads=2 if device.small else 4,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config).to(dtype=dtype, device=device.name)
    if kind == "full":
        return model
    set_seed(0)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora)


def make_trainer(
    device: Device,
    directory: Path,
    callbacks: Sequence[TrainerCallback],
    *,
    kind: Kind = "lora",
    dtype: torch.dtype = torch.bfloat16,
    steps: int = 12,
    **options: Any,
) -> Trainer:
    """A Trainer of `steps` steps of two batches of four rows."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": steps,
        "learning_rate": 1e-3,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
        "use_cpu": not device.is_gpu,
        "bf16": device.is_gpu and dtype == torch.bfloat16,
    }
    arguments = TrainingArguments(output_dir=str(directory), **(defaults | options))
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return Trainer(
        model=make_model(device, kind, dtype),
        args=arguments,
        train_dataset=_rows(8 * steps, (4, 12) if device.small else (40, 120)),
        data_collator=_padded,
        callbacks=list(callbacks),
    )


def _rows(count: int, lengths: tuple[int, int]) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(*lengths, (count,), generator=generator).tolist()
    rows = [torch.randint(3, VOCABULARY, (size,), generator=generator).tolist() for size in sizes]
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


def _padded(batch: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """A batch with a padding mask, as most batches of real runs have one."""
    longest = max(len(row["input_ids"]) for row in batch)

    def column(name: str, fill: int) -> Tensor:
        return torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in batch])

    mask = torch.tensor([[1] * len(row["labels"]) + [0] * (longest - len(row["labels"])) for row in batch])
    return {"input_ids": column("input_ids", 0), "labels": column("labels", -100), "attention_mask": mask}


def weights_in(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors in the files of `checkpoint`."""
    return {name: t for file in sorted(checkpoint.glob("*.safetensors")) for name, t in load_file(file).items()}


def digests(directory: Path) -> dict[int, str]:
    """SHA-256 over the weights of each checkpoint in `directory`, by step."""
    files = directory.glob("checkpoint-*/*model.safetensors")
    return {int(f.parent.name.split("-")[1]): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
