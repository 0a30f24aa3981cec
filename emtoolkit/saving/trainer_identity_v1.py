"""The identity of a bare Trainer's trajectory in version 1, so that a directory of that version can be continued.

Version 1 held fewer facts. What it does not hold is not compared.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from typing import Any

from transformers import TrainingArguments

from emtoolkit.saving.forked import in_fork
from emtoolkit.saving.strategy import TrainerEvent
from emtoolkit.storage.digests import canonical_json

# The arguments that decide the weights. Arguments about output, logging and evaluation do not.
_DECISIVE_ARGUMENTS = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "data_seed",
    "dataloader_drop_last",
    "fp16",
    "gradient_accumulation_steps",
    "label_smoothing_factor",
    "learning_rate",
    "lr_scheduler_type",
    "max_grad_norm",
    "neftune_noise_alpha",
    "num_train_epochs",
    "max_steps",
    "optim",
    "optim_args",
    "seed",
    "warmup_steps",
    "weight_decay",
    "world_size",
)
# Fields that other trainers add to the arguments decide the weights, except these.
_INDECISIVE = ("activation_offloading", "dataset_num_proc", "eval_packing", "precompute_ref_batch_size")
_SAMPLED_ROWS = 64


def version_1_facts(event: TrainerEvent, recorded: Mapping[str, Any], initial_weights: str) -> dict[str, Any]:
    """Everything that version 1 took to decide the weights; a base model that lies elsewhere is the `recorded` one."""
    args, model = event.args, event.model
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    base = {"name": str(getattr(bare, "name_or_path", "") or type(bare).__name__)}
    if _last_part(base) == _last_part(recorded.get("base_model", {})):
        base = dict(recorded["base_model"])
    dataset = event.objects["train_dataloader"].dataset
    data = in_fork(lambda: json.dumps(_data_identity(dataset)).encode())
    names = (*_DECISIVE_ARGUMENTS, *_added_arguments(args))
    return {
        "base_model": base,
        "initial_weights": initial_weights,
        "arguments": {name: _plain(getattr(args, name)) for name in names if hasattr(args, name)},
        "train_batch_size": event.state.train_batch_size,
        "total_steps": event.state.max_steps,
        "data": {"rows": None} if data is None else json.loads(data),
    }


def _last_part(base_model: Mapping[str, Any]) -> str:
    return str(base_model.get("name")).rstrip("/").rsplit("/", 1)[-1]


def _added_arguments(args: Any) -> list[str]:
    """The fields that the class of `args` adds to `TrainingArguments`, such as DPO's `beta`, with plain values."""
    stock = {field.name for field in dataclasses.fields(TrainingArguments)}
    added = {field.name for field in dataclasses.fields(args)} - stock - set(_INDECISIVE)
    return sorted(name for name in added if _is_plain(getattr(args, name)))


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, Enum))


def _data_identity(dataset: Any) -> dict[str, Any]:
    try:
        rows = len(dataset)
    except TypeError:
        return {"rows": None}
    stride = max(1, rows // _SAMPLED_ROWS)
    sample = [_plain(dataset[i]) for i in range(0, rows, stride)]
    return {"rows": rows, "sample": hashlib.sha256(canonical_json(sample)).hexdigest()}


def _plain(value: Any) -> Any:
    """`value` as a JSON value."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(getattr(value, "value", value))
