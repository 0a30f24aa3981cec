"""The identity of a trajectory that a bare `Trainer` trains: everything that is configured decides, unless it is known
not to.

What is known not to decide stands in three lists, each with its reason: `EXCLUSIONS` and `LOADING` of the Trainer's
arguments, `CONFIG_EXCLUSIONS` of the model's config, and `ADAPTER_EXCLUSIONS` of an adapter's.
"""

import hashlib
import sys
from collections.abc import Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from emtoolkit.checkpoints.records import BaseModelRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.saving.arguments_identity import arguments_identity
from emtoolkit.saving.data_identity import data_identity, loads_the_same_everywhere
from emtoolkit.saving.describe import describe
from emtoolkit.saving.float32_precision import float32_precision
from emtoolkit.saving.model_identity import base_name, model_identity
from emtoolkit.saving.optimizer_identity import initial_optimizer_state, optimizer_identity
from emtoolkit.saving.own_code import is_own, names_in, unwatched
from emtoolkit.saving.strategy import TrainerEvent

# The facts of step 0. A resumed model, optimizer and scheduler no longer show them; a resume reads them in the record.
INITIAL = ("initial_weights", "initial_optimizer")


def initial_weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over the names, shapes and values of the tensors that a checkpoint holds."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def identity_of_training(
    event: TrainerEvent, trainer: Any, frozen: str, initial_weights: str, recorded: Mapping[str, Any]
) -> Identity:
    """Everything that decides the weights of a training, read from its Trainer when training begins.

    Args:
        trainer: the Trainer, None if it is not known; then its class, loss and collator are not in.
        frozen: the digest of the weights that are not trained.
        recorded: what the directory's record holds of an earlier run, whose facts of step 0 a resume takes over.
    """
    args, objects = event.args, event.objects
    loader = objects["train_dataloader"]
    data = data_identity(loader.dataset)
    collator = getattr(trainer, "data_collator", None) or getattr(loader, "collate_fn", None)
    loading_decides = not loads_the_same_everywhere(data, collator)
    optimizers = (objects.get("optimizer"), objects.get("lr_scheduler"))
    initial = {
        "initial_weights": initial_weights,
        "initial_optimizer": initial_optimizer_state(event.model, *optimizers, args),
    }
    if event.step > 0:
        initial |= {key: recorded[key] for key in INITIAL if key in recorded}
    fingerprinted: dict[str, Any] = {
        "base_model": {"weights": frozen},
        "model": model_identity(event.model),
        "arguments": arguments_identity(args, event.state.max_steps, loading_decides=loading_decides),
        "train_batch_size": event.state.train_batch_size,
        "total_steps": event.state.max_steps,
        "processes": args.world_size,
        "data": data,
        "collator": describe(collator, event.model),
        "optimizer": optimizer_identity(*optimizers, args, event.state.max_steps),
        "computing": _computing(args, trainer),
        "trainer": _trainer_identity(trainer, event.model),
        **initial,
    }
    name = base_name(event.model)
    return Identity(
        fingerprinted=fingerprinted, base_model=BaseModelRecord(name=name), collection=f"{name}-s{args.seed}"
    )


def running_trainer(callback: Any) -> Any:
    """The Trainer that is sending `callback` its event, which no event names: the caller's `self`."""
    frame = sys._getframe()
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]  # the outermost frame has no caller
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer) and callback in found.callback_handler.callbacks:
            return found
    return None


def _computing(args: Any, trainer: Any) -> dict[str, Any]:
    """In what precision and on what devices the training computes, whatever asked for it."""
    accelerator = getattr(trainer, "accelerator", None)
    backends = torch.backends.cuda
    switched_off = [
        name
        for name in ("flash", "mem_efficient", "math", "cudnn")
        if not getattr(backends, f"{name}_sdp_enabled", lambda: True)()
    ]
    facts = {
        "device": args.device.type,
        "precision": str(getattr(accelerator, "mixed_precision", None) or getattr(args, "mixed_precision", "no")),
        "devices": args.n_gpu if args.n_gpu > 1 else None,
        "distributed": str(describe(args.distributed_state.distributed_type)) if args.world_size > 1 else None,
        "compiled": _compiler(accelerator),
        "deterministic": torch.are_deterministic_algorithms_enabled() or None,
        "attention_kernels_off": switched_off or None,
        "default_dtype": None if (dtype := torch.get_default_dtype()) == torch.float32 else str(dtype),
        **float32_precision(),
    }
    return {key: value for key, value in facts.items() if value is not None}


def _compiler(accelerator: Any) -> str | None:
    plugin = getattr(getattr(accelerator, "state", None), "dynamo_plugin", None)
    backend = str(describe(getattr(plugin, "backend", None) or "NO"))
    return None if backend == "NO" else backend


def _trainer_identity(trainer: Any, model: Any) -> dict[str, Any]:
    """Class and own code of the Trainer, its loss, and the attributes that the code of its class names."""
    if trainer is None:
        return {}
    facts = {"class": describe(type(trainer)), "attributes": _attributes(trainer, model)}
    if (loss := getattr(trainer, "compute_loss_func", None)) is not None:
        facts["loss"] = describe(loss, model)
    if (smoother := getattr(trainer, "label_smoother", None)) is not None:
        facts["label_smoother"] = describe(smoother)
    return {key: value for key, value in facts.items() if value}


def _attributes(trainer: Any, model: Any) -> dict[str, Any]:
    """The attributes of subclasses and replaced methods of the stock Trainer: settings, own objects, other models."""
    classes = [kind for kind in type(trainer).__mro__ if issubclass(kind, Trainer) and kind is not Trainer]
    added = _names_in(*classes) - _names_in(Trainer)
    public = {name for name in added if not name.startswith("_") or any(map(is_own, classes))}
    values = vars(trainer)
    replaced = {name for name in values if hasattr(Trainer, name) and is_own(values[name])}
    return {
        name: describe(values[name], model)
        for name in sorted(public & values.keys() | replaced)
        if values[name] is not None and _is_setting(values[name], own=any(map(is_own, classes)))
    }


def _names_in(*classes: type) -> set[str]:
    functions = (value for kind in classes for value in vars(kind).values() if isinstance(value, FunctionType))
    return set().union(*map(names_in, map(unwatched, functions)))


def _is_setting(value: Any, *, own: bool) -> bool:
    """Whether an attribute decides: models and functions, and of an own class its numbers, texts and own objects.

    The classes of a library take their numbers from the arguments.
    """
    if isinstance(value, torch.nn.Module) or callable(value):
        return True
    return own and (isinstance(value, (bool, int, float, str, list, tuple, dict)) or is_own(type(value)))
