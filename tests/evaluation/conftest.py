"""A training of the tiny model under callbacks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tests.evaluation.probes import ASKED, Train


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "home"))


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
