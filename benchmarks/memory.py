"""The peak memory that a plan estimates, compared with the measured peak of a training with and without evaluations.

    python -m benchmarks.memory [--json FILE]

On a CPU, each training in a fresh process: the rise of the resident set over its size before the model was created.
Two steps of two batches each, so that gradients and the optimizer's state exist when the activations are largest.
"""

import argparse
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Freed large blocks go back to the system, as on a GPU they go back to torch.
os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1024 * 1024)

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.scale import peak_memory
from benchmarks.subject import make_trainer, report, scratch
from emtoolkit.config.sections import LoraConfig, ModelConfig
from emtoolkit.models.architecture import architecture_of
from emtoolkit.models.base import peft_lora
from emtoolkit.models.memory import Memory, Setting, estimate

LENGTH, BATCH, EVAL_BATCH, STEPS = 256, 4, 16, 2
# Hidden width, layers, vocabulary: the logits dominate in the first size, the layers in the second.
SIZES = ((256, 4, 20000), (512, 8, 5000))


@dataclass(frozen=True)
class Subject:
    """A Qwen2 of one size, trained in one way."""

    hidden: int
    layers: int
    vocabulary: int
    lora: bool
    checkpointing: bool
    evaluates: bool

    def config(self) -> ModelConfig:
        architecture = {
            "model_type": "qwen2",
            "hidden_size": self.hidden,
            "intermediate_size": 3 * self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 64,
            "num_key_value_heads": self.hidden // 64,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": True,
        }
        return ModelConfig(base="-", architecture=architecture)


def estimated(subject: Subject) -> Memory:
    found = architecture_of(subject.config(), LoraConfig() if subject.lora else None)
    if found is None:
        raise SystemExit("the architecture is in the config, and was not found")
    setting = Setting(
        dtype_bytes=4,
        batch=BATCH,
        length=LENGTH,
        eval_batch=EVAL_BATCH if subject.evaluates else 0,
        checkpointing=subject.checkpointing,
    )
    return estimate(found.shape, found.trained, setting)


def measured(subject: Subject) -> int:
    """The rise of the resident set in bytes."""
    found = architecture_of(subject.config(), None)
    if found is None:
        raise SystemExit("the architecture is in the config, and was not found")
    with scratch() as directory:
        # Memory of torch and the Trainer themselves is allocated before the model.
        warm_up = AutoModelForCausalLM.from_config(_smallest(found.config))
        train(directory, warm_up, subject)
        del warm_up
        before = resident()
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(found.config)
        if subject.lora:
            model = get_peft_model(model, peft_lora(LoraConfig()))
        train(directory, model, subject)
    return peak_memory() - before


def _smallest(config: Any) -> Any:
    values = config.to_dict() | {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    small = values | {"num_attention_heads": 1, "num_key_value_heads": 1, "layer_types": ["full_attention"]}
    return type(config)(**small)


def train(directory: Path, model: Any, subject: Subject) -> None:
    trainer = make_trainer(
        directory,
        STEPS,
        model=model,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=EVAL_BATCH,
        gradient_checkpointing=subject.checkpointing,
    )
    ids = torch.randint(
        0, subject.vocabulary, (2 * STEPS * BATCH, LENGTH), generator=torch.Generator().manual_seed(1)
    ).tolist()
    trainer.train_dataset = Dataset.from_dict({"input_ids": ids, "labels": ids})
    trainer.train()
    if subject.evaluates:
        trainer.evaluate(Dataset.from_dict({"input_ids": ids[:1] * EVAL_BATCH, "labels": ids[:1] * EVAL_BATCH}))


def resident() -> int:
    """The resident set of this process now, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json")
    arguments = parser.parse_args()
    rows = []
    for size in SIZES:
        for lora in (True, False):
            for checkpointing, evaluates in ((False, False), (True, False), (True, True)):
                subject = Subject(*size, lora=lora, checkpointing=checkpointing, evaluates=evaluates)
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    real = pool.apply(measured, (subject,))
                memory = estimated(subject)
                rows.append(
                    {
                        "hidden x layers": f"{subject.hidden} x {subject.layers}",
                        "trained": "LoRA r=32" if lora else "all weights",
                        "checkpointing": "yes" if checkpointing else "no",
                        "evaluation": f"{EVAL_BATCH} rows" if evaluates else "none",
                        "weights, gradients, optimizer": f"{held(memory) / 1e6:.0f} MB",
                        "estimated": f"{memory.peak / 1e6:.0f} MB",
                        "measured": f"{real / 1e6:.0f} MB",
                        "estimated / measured": f"{memory.peak / real:.2f}",
                    }
                )
                print(rows[-1], flush=True)
    report(f"Peak of memory, {BATCH} rows of {LENGTH} tokens, float32, on a CPU", rows, arguments.json)


def held(memory: Memory) -> int:
    """The bytes held between two batches."""
    return memory.weights + memory.gradients + memory.optimizer


if __name__ == "__main__":
    main()
