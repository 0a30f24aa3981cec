"""The measured training: a Qwen2 of 26M parameters with LoRA r=32 on all projections, under the real Trainer."""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "TOKENIZERS_PARALLELISM": "false",
}

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainerCallback, TrainingArguments

VOCABULARY = 5000
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base_model() -> Qwen2ForCausalLM:
    """8 layers of width 512: 26M parameters, tied embeddings."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)


def lora_model(rank: int = 32) -> Any:
    """The base with a LoRA adapter on all projections: 9.6 MB in float32 at rank 32."""
    return get_peft_model(base_model(), LoraConfig(r=rank, target_modules=PROJECTIONS, task_type="CAUSAL_LM"))


class TimedTrainer(Trainer):
    """A Trainer that records how many seconds each step spends on callbacks, logging and saving.

    `overhead` is the time from the end of a step until it is logged and saved. `later` is the time of the callbacks
    when the next step begins and before its update, where the training waits for a copy that is made beside it.
    """

    changes_weights = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.overhead: dict[int, float] = {}
        self.later: dict[int, float] = {}
        self._began = 0.0
        inner = self.callback_handler.on_step_end

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._began = time.perf_counter()
            return inner(*args, **kwargs)

        self.callback_handler.on_step_end = timed
        for event in ("on_step_begin", "on_pre_optimizer_step"):
            setattr(self.callback_handler, event, self._timed_later(getattr(self.callback_handler, event)))

    def _timed_later(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def timed(args: Any, state: Any, control: Any) -> Any:
            began = time.perf_counter()
            result = inner(args, state, control)
            taken = time.perf_counter() - began
            self.later[state.global_step] = self.later.get(state.global_step, 0.0) + taken
            return result

        return timed

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.overhead.setdefault(self.state.global_step, time.perf_counter() - self._began)

    def stall(self, saved: Sequence[int]) -> list[float]:
        """The overhead of each step in `saved` minus the median overhead of the other steps."""
        usual = statistics.median(t for step, t in self.overhead.items() if step not in saved)
        return [self.overhead[step] - usual for step in saved]

    def stall_later(self, saved: Sequence[int]) -> list[float]:
        """What each step in `saved` costs in `later`, minus the median of the other steps; 0 after the last step."""
        usual = statistics.median(t for step, t in self.later.items() if step not in saved)
        return [self.later[step] - usual if step in self.later else 0.0 for step in saved]


def make_trainer(
    directory: Path, steps: int, callbacks: Sequence[TrainerCallback] = (), *, model: Any = None, **arguments: Any
) -> TimedTrainer:
    """`steps` optimizer steps of 4 rows of 64 tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (4 * steps, 64), generator=generator).tolist()
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": steps,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
    }
    return TimedTrainer(
        model=lora_model() if model is None else model,
        args=TrainingArguments(output_dir=str(directory), **(defaults | arguments)),
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
        callbacks=list(callbacks),
    )


@contextmanager
def wandb_run(directory: Path) -> Iterator[Any]:
    """An offline run with its log, staging and cache below `directory`."""
    import wandb

    own = {name: str(directory / name.lower()) for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR")}
    os.environ |= own
    run = wandb.init(project="benchmark", dir=directory, settings=wandb.Settings(silent=True))
    try:
        yield run
    finally:
        run.finish()


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="emtoolkit-benchmark-") as name:
        yield Path(name)


def bytes_below(directory: Path) -> int:
    """The size of the files below `directory`; hard links count once."""
    files = {(s.st_dev, s.st_ino): s.st_size for f in directory.rglob("*") if f.is_file() for s in [f.stat()]}
    return sum(files.values())


def report(title: str, rows: Sequence[Mapping[str, Any]], path: str | None) -> None:
    """Print `rows` as a table, and write them as JSON to `path` unless it is None."""
    columns = list(rows[0])
    cells = [columns, *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    if path is not None:
        Path(path).write_text(json.dumps({"title": title, "rows": list(rows)}, indent=2) + "\n")
