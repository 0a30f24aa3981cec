"""Base model, then persona, then a fresh LoRA adapter: always in that order."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

from emtoolkit import persona_adapters
from emtoolkit.checkpoints.manifest import FileDigest
from emtoolkit.config import LoraConfig, ModelConfig, TrainingConfig
from emtoolkit.errors import ConfigError, first_line
from emtoolkit.locations import expand
from emtoolkit.persona_adapters import PersonaAdapter

# What a local model directory is known by: these decide the logits, a README does not.
_DECISIVE_FILES = ("*.safetensors", "*.bin", "config.json", "tokenizer.json", "tokenizer_config.json", "*.jinja")


def model_path(config: ModelConfig) -> str:
    """The directory or hub id to load from.

    Raises:
        ConfigError: `model.base` looks like a path, and there is no such directory.
    """
    if not config.base.startswith(("$", "~", "/", ".")) and not Path(config.base).is_dir():
        return config.base
    directory = expand(config.base).absolute()
    if not (directory / "config.json").is_file():
        raise ConfigError(
            f"model.base: {directory}: there is no model in it; the sandbox's files are made by "
            "'emtoolkit sandbox build'"
        )
    return str(directory)


def base_identity(config: ModelConfig) -> dict[str, Any]:
    """What a fingerprint and a manifest say of the base model: the content of a directory, or id and commit.

    The commit of a hub id is the one in the local cache; before a download it is the revision as configured.
    """
    path = model_path(config)
    if not Path(path).is_dir():
        return {"name": path, "revision": _cached_commit(path, config.revision) or config.revision}
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _DECISIVE_FILES for file in Path(path).glob(pattern)}):
        digest.update(f"{file.name} {FileDigest.of(file).sha256}\n".encode())
    return {"name": Path(path).name, "content": digest.hexdigest()}


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer of the base model.

    Raises:
        ConfigError: it cannot be had, here or from the hub.
    """
    try:
        return AutoTokenizer.from_pretrained(model_path(config), revision=config.revision or "main")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.base: {config.base!r}: its tokenizer cannot be loaded ({first_line(error)})"
        ) from None


def load_base(config: ModelConfig) -> Any:
    """The base model, in `config.dtype`.

    Raises:
        ConfigError: it cannot be had, here or from the hub.
    """
    options: dict[str, Any] = {"revision": config.revision or "main", "dtype": config.dtype}
    if config.attn_implementation is not None:
        options["attn_implementation"] = config.attn_implementation
    try:
        return AutoModelForCausalLM.from_pretrained(model_path(config), **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.base: {config.base!r}: it cannot be loaded ({first_line(error)})") from None


def add_adapter(model: Any, lora: LoraConfig, seed: int) -> Any:
    """`model` with a fresh LoRA adapter, initialised from `seed` alone.

    Loading a base model or a persona draws random numbers: without seeding again right here the adapter would
    start elsewhere under every persona, and a difference of seeds would pass for a difference of personas.
    """
    from peft import get_peft_model

    set_seed(seed)
    return get_peft_model(model, peft_lora(lora))


def compose(base: Any, adapter: PersonaAdapter | None, lora: LoraConfig | None, seed: int) -> Any:
    """`base`, which this changes, with the persona's adapter and then a fresh one, or all weights if `lora` is None.

    Raises:
        ConfigError: the persona's adapter cannot be loaded.
    """
    if adapter is not None and adapter.source.compose == "merge":
        base = persona_adapters.merge(base, adapter)
    model = base if lora is None else add_adapter(base, lora, seed)
    if adapter is not None and adapter.source.compose == "stack":
        persona_adapters.stack(model, adapter)
    return model


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """No gradients and no dropout inside; afterwards the model is in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def peft_lora(lora: LoraConfig) -> Any:
    """`lora` as PEFT's own configuration."""
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT computes with it as a float and annotates int
        use_rslora=lora.rslora,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        layers_to_transform=lora.layers_to_transform,
        task_type="CAUSAL_LM",
    )


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the base model's weights by name, from its config alone; None where it is not here."""
    empty = _empty(config)
    return None if empty is None else {name: tuple(p.shape) for name, p in empty.named_parameters()}


def _empty(model: ModelConfig) -> Any:

    config = _architecture(model)
    if config is None:
        return None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
            config, dtype=getattr(torch, model.dtype)
        )


def checkpoint_bytes(model: ModelConfig, lora: LoraConfig | None) -> int | None:
    """How large the weights of one checkpoint will be, from the model's config alone; None where it is not here.

    Adapters are kept in float32, full fine-tunes in the model's own dtype.
    """
    from peft import get_peft_model

    empty = _empty(model)
    if empty is None:
        return None
    with torch.device("meta"):
        if lora is None:
            return sum(int(parameter.nbytes) for parameter in empty.parameters())
        try:
            adapted = get_peft_model(empty, peft_lora(lora))
        except ValueError as error:
            raise ConfigError(f"lora.target_modules: {lora.target_modules}: {first_line(error)}") from None
        return sum(4 * int(p.numel()) for p in adapted.parameters() if p.requires_grad)


def effective_optimizer(training: TrainingConfig) -> str:
    """The Trainer's name of the optimizer that will be used: plain AdamW where bitsandbytes is not installed."""
    from importlib.util import find_spec

    if training.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is not None:
        return "adamw_bnb_8bit"
    return "adamw_torch"


def _architecture(config: ModelConfig) -> Any:
    if config.architecture is not None:
        values = dict(config.architecture)
        try:
            return AutoConfig.for_model(values.pop("model_type", "?"), **values)
        except ValueError as error:
            raise ConfigError(f"model.architecture: {first_line(error)}") from None
    try:
        return AutoConfig.from_pretrained(model_path(config), revision=config.revision or "main")
    except (OSError, ValueError):
        return None  # a hub id that is not in the cache, with no hub to ask


def _cached_commit(name: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision or "main")
    return Path(found).parent.name if isinstance(found, str) else None
