"""What a model's config alone tells, before there are weights: parameters, and modules that an adapter can sit on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from emtoolkit.config.sections import LoraConfig, ModelConfig
from emtoolkit.errors import ConfigError, first_line, nearest
from emtoolkit.models.base import model_path, peft_lora
from emtoolkit.models.memory import Adapted, Shape, Trained


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model without weights: `config` is transformers', `trained` what a training of it changes.

    `shapes` are those of its own weights by name.
    """

    config: Any
    shapes: Mapping[str, tuple[int, ...]]
    shape: Shape
    trained: Trained
    attention: str

    def checkpoint_bytes(self, dtype: str) -> int:
        """How large the weights of one checkpoint are: adapters are kept in float32, else the model's own dtype."""
        return self.trained.parameters * (4 if self.trained.adapted else bytes_of(dtype))


def bytes_of(dtype: str) -> int:
    """Of one element."""
    return int(getattr(torch, dtype).itemsize)


def architecture_of(model: ModelConfig, lora: LoraConfig | None) -> Architecture | None:
    """The architecture of `model` with `lora` on it (None: all weights are trained); None where it is not here.

    Raises:
        ConfigError: there is no such architecture, module, layer or attention.
    """
    key = (model.model_dump_json(), None if lora is None else lora.model_dump_json())
    return _architecture_of(*key)


# The runs of a sweep are mostly of one architecture, and a large one takes a second to lay out.
@lru_cache(maxsize=8)
def _architecture_of(model_json: str, lora_json: str | None) -> Architecture | None:
    model = ModelConfig.model_validate_json(model_json)
    lora = None if lora_json is None else LoraConfig.model_validate_json(lora_json)
    config = _transformers_config(model)
    if config is None:
        return None
    attention = _attention(model, config)
    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
            config, dtype=getattr(torch, model.dtype)
        )
        shape = _shape(empty, config.get_text_config())
        shapes = {name: tuple(parameter.shape) for name, parameter in empty.named_parameters()}
        if lora is None:
            return Architecture(config, shapes, shape, _all_of(empty), attention)
        _check_targets(empty, lora, shape.layers)
        return Architecture(config, shapes, shape, _adapters_of(empty, lora), attention)


def _transformers_config(model: ModelConfig) -> Any:
    if model.architecture is not None:
        values = dict(model.architecture)
        try:
            return AutoConfig.for_model(values.pop("model_type", "?"), **values)
        except ValueError as error:
            raise ConfigError(f"model.architecture: {first_line(error)}") from None
    try:
        return AutoConfig.from_pretrained(model_path(model), revision=model.revision or "main")
    except (OSError, ValueError):
        return None  # a hub id that is not in the cache, with no hub to ask


def _attention(model: ModelConfig, config: Any) -> str:
    """The attention that the model will be loaded with."""
    kind: Any = AutoModelForCausalLM._model_mapping[type(config)]
    has = {"eager": True, "sdpa": kind._supports_sdpa, "flash_attention_2": kind._supports_flash_attn}
    chosen = model.attn_implementation
    if chosen is not None and not has[chosen]:
        others = " and ".join(name for name, there in has.items() if there)
        raise ConfigError(
            f"model.attn_implementation: {chosen!r} is not there for {config.model_type}, which has {others}"
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
    """The linear layers but the output's, by their dotted names."""
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
    """PEFT ignores a name that fits no module as long as another fits."""
    if lora.layers_to_transform is not None and (past := [n for n in lora.layers_to_transform if n >= layers]):
        raise ConfigError(
            f"lora.layers_to_transform: {past[0]} is past the last layer, {layers - 1}: layers count from 0"
        )
    if isinstance(lora.target_modules, str):
        return
    names = [name for name, module in empty.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Embedding)]
    known = sorted({name.rpartition(".")[2] for name in names})
    for target in lora.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ConfigError(
                f"lora.target_modules: {target!r} is no module of {empty.config.model_type}; expected "
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
