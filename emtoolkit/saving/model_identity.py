"""The identity of a model, read from the model itself: weights, config, adapters, code and hooks."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from emtoolkit.saving.describe import describe, digest, module_numbers, tensors_digest
from emtoolkit.saving.own_code import has_own_code, is_own, qualified_name
from emtoolkit.saving.ranks import Ranks

# Keys of a model's config that do not decide how the model trains.
CONFIG_EXCLUSIONS: Mapping[str, str] = {
    "_name_or_path": "where the model was loaded from; the weights are in by their digest",
    "_commit_hash": "the commit on the hub; the weights are in by their digest",
    "architectures": "written by a save; the class of the model is in",
    "auto_map": "where the code of a class is; the code is in",
    "dtype": "each weight is in with its type",
    "problem_type": "set by the first forward pass of a classifier, from the labels and their number",
    "torch_dtype": "each weight is in with its type",
    "transformers_version": "the version that wrote the config",
    "use_cache": "the cache of keys and values is for generation",
}
# Keys of an adapter's config that record its origin; none of them changes a logit.
ADAPTER_EXCLUSIONS: Mapping[str, str] = {
    "auto_mapping": "the classes of the base model, which are in",
    "base_model_name_or_path": "where the base model was loaded from; its weights are in by their digest",
    "inference_mode": "set by a save; the names of the trainable weights are in",
    "peft_version": "the version that wrote the config",
    "revision": "the commit of the base model; its weights are in by their digest",
    "runtime_config": "where PEFT computes the initial weights, which are in",
}
# Lists of an adapter's config whose order does not matter; PEFT keeps some of them in sets.
_SETS = ("exclude_modules", "layers_to_transform", "modules_to_save", "target_modules", "target_parameters")


def frozen_digest(model: torch.nn.Module, ranks: Ranks, *, sharded: bool) -> str:
    """A digest of the weights and buffers that are not trained: the base model, with everything merged into it.

    Reads each byte once: 0.2 seconds for a gigabyte in memory. Every process calls this; of a sharded model each
    hashes its own part.
    """
    tensors: dict[str, torch.Tensor] = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    for name, tensor in list(tensors.items()):
        # The scales of 4-bit weights, which are no buffers.
        if (state := getattr(tensor, "quant_state", None)) is not None:
            tensors |= {f"{name}.{key}": t for key, t in state.as_dict(packed=True).items() if hasattr(t, "shape")}
    tensors |= dict(model.named_buffers())
    parts = ranks.gather(tensors_digest(tensors) if sharded or ranks.index == 0 else "")
    return hashlib.sha256("".join(parts).encode()).hexdigest() if sharded else "".join(parts)


def model_identity(model: Any) -> dict[str, Any]:
    """Everything but the weights: classes and own code, config, numbers, adapters, and what is trained."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = getattr(bare, "config", None)
    facts = {
        "class": type(bare).__qualname__,
        "code": [describe(kind) for kind in _own_classes(model)],
        "hooks": _own_hooks(model),
        "config": None if config is None else _config(config),
        "attention": getattr(config, "_attn_implementation", None),
        "numbers": digest(module_numbers(model)),
        "trained": _trained(model),
        "adapters": {name: adapter_identity(values) for name, values in _active_adapters(model).items()},
    }
    return {key: value for key, value in facts.items() if value not in (None, [], {})}


def adapter_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an adapter as it decides: without its origin, and without the order of its sets."""
    described = {key: describe(value) for key, value in config.items() if key not in ADAPTER_EXCLUSIONS}
    return {
        key: value
        for key, value in in_one_order(described).items()
        if value is not None and value is not False and value not in ({}, [])
    }


def in_one_order(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an adapter with its sets sorted: the order of a set in memory depends on PYTHONHASHSEED."""
    return {
        key: sorted(value, key=repr) if isinstance(value, set) or (key in _SETS and isinstance(value, list)) else value
        for key, value in config.items()
    }


def base_name(model: Any) -> str:
    """The name of the base model for readers: the hub id, the last part of a directory's path, or a class."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = str(getattr(bare, "name_or_path", "") or "")
    return hub_id(name) or Path(name).expanduser().absolute().name if name else type(bare).__name__


def hub_id(place: str | None) -> str | None:
    """`place` if it is an id on the hub, None if it is a directory, whose path is another one on another machine."""
    if not place or place.startswith(("/", ".", "~")) or place.count("/") > 1 or Path(place).exists():
        return None
    return place


def _config(config: Any) -> dict[str, Any]:
    return {
        key: described
        for key, value in config.to_dict().items()
        if key not in CONFIG_EXCLUSIONS and (described := describe(value)) is not None
    }


def _active_adapters(model: Any) -> dict[str, Mapping[str, Any]]:
    configs = getattr(model, "peft_config", None)
    if not configs:
        return {}
    # A method in transformers, an attribute in PEFT, and neither after inject_adapter_in_model.
    active = getattr(model, "active_adapters", configs)
    try:
        names = active() if callable(active) else active
    except ValueError:
        names = configs
    return {name: config.to_dict() for name, config in configs.items() if name in names}


def _trained(model: torch.nn.Module) -> dict[str, Any]:
    """How many weights are trained, and a digest of their names, shapes and types."""
    trained = {n: (list(p.shape), str(p.dtype)) for n, p in model.named_parameters() if p.requires_grad}
    return {"tensors": len(trained), "names": digest(trained)}


def _own_classes(model: torch.nn.Module) -> list[type]:
    kinds = {type(module) for module in model.modules()}
    return sorted(filter(has_own_code, kinds), key=qualified_name)


def _own_hooks(model: torch.nn.Module) -> dict[str, Any]:
    """The user's own functions that change a forward or backward pass, by the module or weight that they hang on."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, hooks in vars(module).items():
            if key.endswith("_hooks") and isinstance(hooks, Mapping):
                found[f"{name}.{key}"] = [hook for hook in hooks.values() if _is_own_callable(hook)]
        if _is_own_callable(forward := vars(module).get("forward")):
            found[f"{name}.forward"] = [forward]
    for name, parameter in model.named_parameters():
        hooks = getattr(parameter, "_backward_hooks", None) or {}
        found[f"{name}._backward_hooks"] = [hook for hook in hooks.values() if _is_own_callable(hook)]
    return {key: [describe(hook, model) for hook in hooks] for key, hooks in sorted(found.items()) if hooks}


def _is_own_callable(value: Any) -> bool:
    inner = getattr(value, "func", value)
    return inner is not None and (is_own(inner) if hasattr(inner, "__qualname__") else is_own(type(inner)))
