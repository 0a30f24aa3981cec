"""Each training argument and each option of a LoRA, changed one at a time: what it does to the weights and to the
fingerprint.

    python -m benchmarks.fingerprint_table

trains a model of a few thousand weights for three steps with and without each change, and prints a table. The exit code
is 1 if a change gives other weights under one fingerprint.
"""

import argparse
import contextlib
import dataclasses
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is imported: two threads give other sums than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments

from benchmarks.fingerprint_changes import CHANGES, Change, Of, Options
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.saving.callback import ScheduledCheckpointCallback

STEPS = 3


@dataclass(frozen=True)
class Trained:
    """The fingerprint of a training, and the bytes of its last weights."""

    fingerprint: str
    weights: bytes


@dataclass(frozen=True)
class Row:
    """What one change does; `refused` is the error with which the training does not begin."""

    change: Change
    other_weights: bool = False
    other_fingerprint: bool = False
    refused: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether two trainings share a fingerprint."""
        return self.other_weights and not self.other_fingerprint


def fields_of(of: Of) -> set[str]:
    """The names of all fields of the Trainer's arguments or of a LoRA's config."""
    kind: Any = TrainingArguments if of == "argument" else LoraConfig
    return {entry.name for entry in dataclasses.fields(kind)}


def rows_of(changes: Iterable[Change]) -> Iterator[Row]:
    """Train with and without each of `changes`."""
    without: dict[str, Trained] = {}
    for change in changes:
        key = repr((change.of, change.beside))
        try:
            if key not in without:
                without[key] = _train(change.of, change.beside)
            found = _train(change.of, {**change.beside, change.name: change.changed})
        except Exception as error:  # noqa: BLE001  # any library may refuse an option, in its own way
            yield Row(change, refused=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            continue
        before = without[key]
        yield Row(change, found.weights != before.weights, found.fingerprint != before.fingerprint)


def _train(of: Of, options: Options) -> Trained:
    arguments, lora = (options, {}) if of == "argument" else ({}, options)
    model = _model(lora)
    rows = _rows()
    deterministic = torch.are_deterministic_algorithms_enabled()
    with tempfile.TemporaryDirectory() as home, _quiet():
        directory = Path(home) / str(arguments.get("output_dir", "run"))
        defaults = {
            "data_seed": None,
            "disable_tqdm": True,
            "learning_rate": 1e-2,
            "logging_strategy": "no",
            "max_steps": STEPS,
            "per_device_train_batch_size": 2,
            "report_to": [],
            "save_strategy": "no",
            "seed": 7,
            "use_cpu": True,
        }
        try:
            Trainer(
                model=model,
                args=TrainingArguments(**{**defaults, **arguments, "output_dir": str(directory)}),
                train_dataset=rows,
                eval_dataset=rows.select(range(4)),
                callbacks=[ScheduledCheckpointCallback("1", publish=False, resume_every="never")],
            ).train()
        finally:
            torch.use_deterministic_algorithms(deterministic)
        record = TrajectoryRecord.read_if_any(directory)
        if record is None or record.ended_at is None:
            raise RuntimeError("the training did not end")
        weights = directory / f"checkpoint-{record.ended_at}" / "adapter_model.safetensors"
        return Trained(record.fingerprint, weights.read_bytes())


def _model(lora: Options) -> Any:
    torch.manual_seed(0)
    base = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    defaults = {
        "lora_dropout": 0.1,
        "r": 2,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }
    torch.manual_seed(1)
    with _quiet():
        return get_peft_model(base, LoraConfig(**{**defaults, **lora}))


def _rows() -> Dataset:
    """15 rows, so that the last batch of an epoch is not full, with a length that no argument names."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 32, (15, 6), generator=generator).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table, and the count of each cell."""
    rows = sorted(rows, key=lambda row: (row.change.of, row.change.name, repr(row.change.changed)))
    lines = ["| of | changed | to | other weights | other fingerprint |", "|---|---|---|---|---|"]
    for row in rows:
        beside = f" beside {_text(row.change.beside)}" if row.change.beside else ""
        cells: tuple[str, ...] = (_yes(row.other_weights), _yes(row.other_fingerprint))
        if row.refused:
            cells = ("refused", row.refused[:100].replace("|", "\\|"))
        value = f"`{row.change.changed!r}`{beside}".replace("|", "\\|")
        lines.append(f"| {row.change.of} | `{row.change.name}` | {value} | {cells[0]} | {cells[1]} |")
    trained = [row for row in rows if not row.refused]
    lines += ["", "| | other fingerprint | same fingerprint |", "|---|--:|--:|"]
    for name, other in (("other weights", True), ("same weights", False)):
        part = [row for row in trained if row.other_weights is other]
        changed = sum(row.other_fingerprint for row in part)
        lines.append(f"| {name} | {changed} | {len(part) - changed} |")
    return "\n".join(lines)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _text(options: Options) -> str:
    return ", ".join(f"`{name}={value!r}`" for name, value in options.items())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Which options decide the weights, and which the fingerprint.")
    parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    rows = list(rows_of(CHANGES))
    print(table(rows))
    return int(any(row.is_wrong for row in rows))


if __name__ == "__main__":
    sys.exit(main())
