"""The identity of a trajectory that a bare `Trainer` trains, read from the Trainer's arguments, model and data."""

import dataclasses
import hashlib
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from transformers import TrainingArguments

from emtoolkit.checkpoints.records import BaseModelRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.saving.model_state import ModelState
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


def initial_weights_digest(state: ModelState) -> str:
    """SHA-256 in hex over the names, shapes and values of the tensors that a checkpoint holds."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def identity_of_training(args: Any, state: Any, model: Any, dataset: Any, initial_weights: str) -> Identity:
    """Everything that decides the weights of a training that is known only from its Trainer.

    The batch size and the number of steps come from `state`, because `auto_find_batch_size` changes them. The data are
    identified by their number of rows and by a sample of 64 rows, so that the cost does not grow with the data.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = str(getattr(bare, "name_or_path", "") or type(bare).__name__)
    names = (*_DECISIVE_ARGUMENTS, *_added_arguments(args))
    arguments = {name: _plain(getattr(args, name)) for name in names if hasattr(args, name)}
    fingerprinted: Mapping[str, Any] = {
        "base_model": {"name": name},
        "initial_weights": initial_weights,
        "arguments": arguments,
        "train_batch_size": state.train_batch_size,
        "total_steps": state.max_steps,
        "data": _data_identity(dataset),
    }
    short = name.rstrip("/").rsplit("/", 1)[-1]
    return Identity(
        fingerprinted=fingerprinted, base_model=BaseModelRecord(name=name), collection=f"{short}-s{args.seed}"
    )


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
