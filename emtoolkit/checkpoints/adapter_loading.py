"""Loading the adapter of a checkpoint into a base model that may have held the adapter of another checkpoint.

The base model must be as it was: not merged with an earlier adapter, and not changed by one. Some adapters change the
base model when they are loaded: PiSSA takes components out of its weights, trained biases and embeddings replace its
own. So a sample of every weight is kept from before the first adapter, and compared before the next one.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from emtoolkit.checkpoints.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from emtoolkit.checkpoints.manifest import Manifest
from emtoolkit.checkpoints.records import PersonaRecord
from emtoolkit.errors import CheckpointError

_PEFT_PREFIX = "base_model.model."
# Elements of each weight that are compared: a merged adapter changes nearly all of them.
_SAMPLED = 1024

# The weights of each base model before the first adapter was loaded into it.
_before: "WeakKeyDictionary[nn.Module, Mapping[str, Tensor]]" = WeakKeyDictionary()


class ChangedBaseError(CheckpointError):
    """The base model is not as it was before the first adapter was loaded into it; it has to be loaded anew."""


def load_checkpoint(model: Any, path: Path, manifest: Manifest | None, *, persona_is_in: bool) -> Any:
    """Load the adapter of the checkpoint at `path` into `model`; see `Checkpoint.load_adapter`.

    Raises:
        CheckpointError: the checkpoint holds no adapter, or the persona's adapter is missing from `model`.
    """
    persona = PersonaRecord() if manifest is None else manifest.persona
    if persona.has_adapter and not persona_is_in:
        raise CheckpointError(
            f"{path}: the adapter was trained on top of the adapter of persona {persona.name} "
            f"({persona.composition}) and does not fit the base model alone; load it with emtoolkit.ModelLoader"
        )
    if not (path / ADAPTER_CONFIG).is_file():
        raise CheckpointError(f"{path}: the checkpoint is a full model, not an adapter; use from_pretrained")
    # Without this file PEFT would unpickle adapter_model.bin.
    if not (path / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(f"{path}: there is no adapter_model.safetensors; emtoolkit unpickles no weights")
    return load_adapter(model, path)


def load_adapter(model: Any, directory: Path) -> Any:
    """Load the adapter in `directory` into `model`, a base model or what an earlier call returned; a `PeftModel`.

    Raises:
        ChangedBaseError: an earlier adapter is in the weights of the base model.
    """
    from peft import PeftModel

    base = _without_adapters(getattr(model, "_orig_mod", model))
    weights = _sampled(base)
    before = _before.setdefault(base, weights)
    if changed := _changed(before, weights) - _replaced_by(directory):
        raise ChangedBaseError(
            f"the base model's weights are not as they were before the first adapter was loaded ('{min(changed)}'): "
            "an adapter was merged (merge_and_unload), has an initialization that changes them (PiSSA, OLoRA), or "
            "trained biases or embeddings; load the base model anew"
        )
    return PeftModel.from_pretrained(base, directory)


def _without_adapters(model: Any) -> Any:
    """The base model of `model`, with its own modules where an adapter had put others in their places."""
    from peft import PeftMixedModel, PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        if layer.merged:
            raise ChangedBaseError(
                f"the adapter '{layer.merged_adapters[0]}' is merged into the base model (merge_adapter); "
                "unmerge_adapter() takes it out, up to rounding, or load the base model anew"
            )
    if not isinstance(model, (PeftModel, PeftMixedModel)):
        if layers:
            raise ChangedBaseError(
                "the base model holds an adapter already (add_adapter, or a PeftModel around it); pass the model that "
                "the earlier load_adapter returned, or load the base model anew"
            )
        return model
    if getattr(model, "_is_prompt_learning", False):
        return model.get_base_model()
    own = {name: m.original_module for name, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)}
    try:
        base = model.unload()
    except (AttributeError, NotImplementedError):
        method = model.peft_config[model.active_adapter].peft_type
        raise ChangedBaseError(f"PEFT cannot take an adapter of type {method} out; load the base model anew") from None
    # PEFT leaves the modules of the adapter in place.
    for name, module in own.items():
        base.set_submodule(name.removeprefix(_PEFT_PREFIX), module)
    return base


def _sampled(base: nn.Module) -> Mapping[str, Tensor]:
    return {name: _sample(tensor) for name, tensor in _tensors(base) if not tensor.is_meta}


def _tensors(base: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from base.named_parameters()
    yield from base.named_buffers()


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // _SAMPLED)].to("cpu", copy=True)


def _changed(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> set[str]:
    """The names of the weights that differ or are gone; a model that was moved, cast or resized is the same."""
    return {
        name
        for name, sample in before.items()
        if name not in now
        or (sample.shape == now[name].shape and not torch.equal(sample.to(now[name].dtype), now[name]))
    }


def _replaced_by(directory: Path) -> set[str]:
    """The weights of the base model that the files in `directory` replace, such as biases and embeddings."""
    from safetensors import safe_open

    with safe_open(directory / ADAPTER_WEIGHTS, "pt") as file:
        names = {name.removeprefix(_PEFT_PREFIX) for name in file.keys()}  # noqa: SIM118 - no mapping
    return names | {name.replace(".base_layer.", ".") for name in names}
