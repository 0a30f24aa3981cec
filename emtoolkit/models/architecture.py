"""The architecture of a model from its config alone, without weights: parameters, and modules for adapters."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from emtoolkit.config.sections import LoraConfig, ModelConfig
from emtoolkit.errors import ConfigError, first_line, nearest
from emtoolkit.models.base import peft_lora
from emtoolkit.models.location import model_path
from emtoolkit.models.memory import Adapted, Shape, Trained
from emtoolkit.models.remote_code import check_code_is_pinned, refusal_of_code


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model without weights.

    `config` is the transformers config, `shapes` the shape of each weight by name, `trained` the tensors that a
    training changes, and `attention` the attention implementation.
    """

    config: Any
    shapes: Mapping[str, tuple[int, ...]]
    shape: Shape
    trained: Trained
    attention: str

    def checkpoint_bytes(self, dtype: str) -> int:
        """The bytes of the weights in one checkpoint: adapters are float32, full models have the dtype `dtype`."""
        return self.trained.parameters * (4 if self.trained.adapted else bytes_of(dtype))


def bytes_of(dtype: str) -> int:
    """The bytes of one element of the torch dtype named `dtype`."""
    return int(getattr(torch, dtype).itemsize)


def architecture_of(model: ModelConfig, lora: LoraConfig | None) -> Architecture | None:
    """The architecture of `model` with `lora`, or with all weights trained if `lora` is None.

    None if the config of a hub id is neither declared under `model.architecture` nor in the local cache.

    Raises:
        ConfigError: an unknown architecture, or a module, layer or attention that the architecture does not have.
    """
    key = (model.model_dump_json(), None if lora is None else lora.model_dump_json())
    return _architecture_of(*key)


# The runs of a sweep usually share one architecture, and building a large one takes a second.
@lru_cache(maxsize=8)
def _architecture_of(model_json: str, lora_json: str | None) -> Architecture | None:
    model = ModelConfig.model_validate_json(model_json)
    lora = None if lora_json is None else LoraConfig.model_validate_json(lora_json)
    config = _transformers_config(model)
    if config is None:
        return None
    with torch.device("meta"):
        empty = _empty_model(model, config)
        attention = _attention(model, type(empty), config)
        shape = _shape(empty, config.get_text_config())
        shapes = {name: tuple(parameter.shape) for name, parameter in empty.named_parameters()}
        if lora is None:
            return Architecture(config, shapes, shape, _all_of(empty), attention)
        _check_targets(empty, lora, shape.layers)
        return Architecture(config, shapes, shape, _adapters_of(empty, lora), attention)


def _empty_model(model: ModelConfig, config: Any) -> Any:
    try:
        return AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
            config, dtype=getattr(torch, model.dtype), trust_remote_code=model.trust_remote_code
        )
    except (ValueError, TypeError, KeyError, ArithmeticError, RuntimeError) as error:
        key = "model.base" if model.architecture is None else "model.architecture"
        raise ConfigError(
            f"{key}: transformers makes no causal language model of the config ({first_line(error)})"
        ) from None


def implied_attention(model: ModelConfig) -> str:
    """The attention implementation that transformers chooses for the model; `sdpa` where the model is not here."""
    found = architecture_of(model.model_copy(update={"attn_implementation": None}), None)
    return "sdpa" if found is None else found.attention


def _transformers_config(model: ModelConfig) -> Any:
    if model.architecture is not None:
        values = dict(model.architecture)
        try:
            return AutoConfig.for_model(values.pop("model_type", "?"), **values)
        except ValueError as error:
            raise ConfigError(f"model.architecture: {first_line(error)}") from None
    path = model_path(model)
    check_code_is_pinned(model, path)
    try:
        return AutoConfig.from_pretrained(
            path, revision=model.revision or "main", trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        if refusal := refusal_of_code(model, path, error):
            raise refusal from None
        if Path(path).is_dir():
            raise ConfigError(f"model.base: {path}: config.json cannot be read ({first_line(error)})") from None
        return None  # a hub id that is not in the cache, without a connection to the hub


def _attention(model: ModelConfig, kind: Any, config: Any) -> str:
    """The attention implementation that a model of the class `kind` is loaded with."""
    has = {"eager": True, "sdpa": kind._supports_sdpa, "flash_attention_2": kind._supports_flash_attn}
    chosen = model.attn_implementation
    if chosen is not None and not has[chosen]:
        others = " or ".join(name for name, supported in has.items() if supported)
        raise ConfigError(
            f"model.attn_implementation: {config.model_type} does not support {chosen!r}; expected {others}"
        )
    return chosen or ("sdpa" if kind._supports_sdpa else "eager")


def _shape(empty: Any, text: Any) -> Shape:
    output = empty.get_output_embeddings()
    linear = [m for _, m in _linear_modules(empty)]
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    keys = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    norms = [m for m in empty.get_decoder().layers[0].modules() if type(m).__name__.endswith("Norm")]
    return Shape(
        parameters=sum(int(p.numel()) for p in empty.parameters()),
        linear=sum(int(m.weight.numel()) for m in linear),
        output=int(output.weight.numel()),
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        query=text.num_attention_heads * head,
        key=keys * head,
        vocabulary=int(output.weight.shape[0]),
        norms=sum(m.weight.numel() == text.hidden_size for m in norms),
        head_norms=any(m.weight.numel() == head for m in norms),
        norms_in_float32=text.model_type.startswith("gemma"),
        softcapped_attention=getattr(text, "attn_logit_softcapping", None) is not None,
        softcapped_logits=getattr(text, "final_logit_softcapping", None) is not None,
    )


def _linear_modules(empty: Any) -> Iterator[tuple[str, Any]]:
    """The linear layers except the output layer, with their dotted names."""
    output = empty.get_output_embeddings()
    for name, module in empty.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not output:
            yield name, module


def _all_of(empty: Any) -> Trained:
    embeddings = {id(m.weight) for m in empty.modules() if isinstance(m, torch.nn.Embedding)}
    parameters = list(empty.parameters())
    return Trained(
        tensors=tuple(int(p.numel()) for p in parameters),
        embeddings=tuple(int(p.numel()) for p in parameters if id(p) in embeddings),
    )


def _check_targets(empty: Any, lora: LoraConfig, layers: int) -> None:
    """Check every name; PEFT ignores a name that matches no module as long as another name matches one."""
    if lora.layers_to_transform is not None and (past := [n for n in lora.layers_to_transform if n >= layers]):
        raise ConfigError(
            f"lora.layers_to_transform: {past[0]} is past the last layer, {layers - 1}; layers count from 0"
        )
    if isinstance(lora.target_modules, str):
        return
    names = [name for name, module in empty.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Embedding)]
    known = sorted({name.rpartition(".")[2] for name in names})
    for target in lora.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ConfigError(
                f"lora.target_modules: {target!r} is not a module of {empty.config.model_type}; expected "
                f"all-linear or some of {', '.join(known)}{nearest(target, known)}"
            )


def _adapters_of(empty: Any, lora: LoraConfig) -> Trained:
    from peft import get_peft_model

    try:
        adapted = get_peft_model(empty, peft_lora(lora))
    except ValueError as error:
        raise ConfigError(f"lora.target_modules: {lora.target_modules}: {first_line(error)}") from None
    tensors = tuple(int(p.numel()) for p in adapted.parameters() if p.requires_grad)
    return Trained(tensors=tensors, adapted=tuple(_adapted_modules(adapted)))


def _adapted_modules(adapted: Any) -> Iterator[Adapted]:
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "in_features"):
            parts = name.split(".")
            layer = next((int(part) for part in parts if part.isdigit()), 0)
            yield Adapted(layer, ".".join(parts[:-1]), parts[-1], module.in_features, module.r["default"])
