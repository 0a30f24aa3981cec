"""The model to train: base model, then persona, then a new LoRA adapter, always in that order."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, set_seed
from transformers import __version__ as _TRANSFORMERS

from emtoolkit.config.sections import LoraConfig, ModelConfig, TrainingConfig
from emtoolkit.errors import ConfigError, first_line
from emtoolkit.models import persona_adapters
from emtoolkit.models.base_files import holds_tokenizer
from emtoolkit.models.base_record import cached_snapshot
from emtoolkit.models.base_weights import check_base_files
from emtoolkit.models.causal_lm import load_causal_lm
from emtoolkit.models.location import model_path
from emtoolkit.models.peft_import import see_bitsandbytes
from emtoolkit.models.persona_adapters import PersonaAdapter
from emtoolkit.models.remote_code import check_code_is_pinned, refusal_of_code


def check_base(config: ModelConfig, *, need_weights: bool) -> None:
    """Check the files of the base model that are on this machine, without loading them; a hub id may have none yet.

    Raises:
        ConfigError: a file is not the one that it should be; the text names the file.
    """
    path = Path(model_path(config))
    if path.is_dir():
        check_base_files(path, need_weights=need_weights)
    elif (snapshot := cached_snapshot(str(path), config.revision)) is not None:
        check_base_files(snapshot, need_weights=False)


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer of the base model.

    Raises:
        ConfigError: the tokenizer is neither on this machine nor on the hub, cannot be read, or is Python code that the
            config does not allow.
    """
    path = model_path(config)
    check_code_is_pinned(config, path)
    if Path(path).is_dir() and not config.trust_remote_code and not holds_tokenizer(Path(path)):
        raise ConfigError(f"model.base: {config.base!r}: holds no tokenizer (no tokenizer.json); download it again")
    try:
        return AutoTokenizer.from_pretrained(
            path, revision=config.revision or "main", trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exceptions for files that it cannot read
        if refusal := refusal_of_code(config, path, error):
            raise refusal from None
        hint = "" if isinstance(error, OSError) else f"; is it of a newer library than transformers {_TRANSFORMERS}?"
        raise ConfigError(
            f"model.base: {config.base!r}: the tokenizer cannot be loaded ({first_line(error)}){hint}"
        ) from None


def device_for(config: ModelConfig, environment: Mapping[str, str] = os.environ) -> torch.device:
    """The device of the model: the GPU of this process, or the CPU without a GPU.

    Under a launcher (`torchrun`, `accelerate launch`) `LOCAL_RANK` is the index of the GPU.

    Raises:
        ConfigError: `model.device` is cuda, and there is no GPU.
    """
    if torch.cuda.is_available() and config.device != "cpu":
        return torch.device("cuda", int(environment.get("LOCAL_RANK", "0")))
    if config.device == "cuda":
        raise ConfigError("model.device: 'cuda' needs a GPU, and torch finds none; set it to cpu, or remove it")
    return torch.device("cpu")


def check_can_load(config: ModelConfig, training: TrainingConfig) -> None:
    """Check that this machine has the packages and the device that loading the model takes.

    Raises:
        ConfigError: a package or a device is missing; the message names it.
    """
    device = device_for(config)
    if config.load_in_4bit and find_spec("bitsandbytes") is None:
        raise ConfigError(
            "model.load_in_4bit: True needs bitsandbytes, which is not installed: pip install 'emtoolkit[4bit]'"
        )
    if training.bf16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("training.bf16: this GPU does not support bfloat16; set it to false")
    if config.attn_implementation != "flash_attention_2":
        return
    where = "model.attn_implementation: 'flash_attention_2'"
    if find_spec("flash_attn") is None:
        raise ConfigError(f"{where} needs the package flash-attn, which is not installed; use sdpa or eager")
    if device.type != "cuda":
        raise ConfigError(f"{where} needs a GPU, and the model is loaded on the {device.type}; use sdpa or eager")
    if config.dtype == "float32" and not training.bf16:
        raise ConfigError(f"{where} cannot compute in float32; set model.dtype to bfloat16, or training.bf16 to true")


def load_base(config: ModelConfig) -> Any:
    """The base model in `config.dtype` or in 4-bit, loaded directly to the device on which it is trained.

    Raises:
        ConfigError: the model is neither on this machine nor on the hub, cannot be read, or is Python code that the
            config does not allow.
    """
    options: dict[str, Any] = {
        "revision": config.revision or "main",
        "dtype": config.dtype,
        "trust_remote_code": config.trust_remote_code,
    }
    if config.attn_implementation is not None:
        options["attn_implementation"] = config.attn_implementation
    device = device_for(config)
    if config.load_in_4bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    if config.load_in_4bit or device.type != "cpu":
        options["device_map"] = {"": device}
    path = model_path(config)
    check_code_is_pinned(config, path)
    try:
        model = load_causal_lm(path, **options)
    except (OSError, ValueError, ImportError) as error:
        if refusal := refusal_of_code(config, path, error):
            raise refusal from None
        raise ConfigError(f"model.base: {config.base!r}: cannot be loaded ({first_line(error)})") from None
    if getattr(model, "hf_quantizer", None) is not None:
        see_bitsandbytes()
    if not config.load_in_4bit:
        return model
    from peft import prepare_model_for_kbit_training

    # Freezes all weights and casts unquantised ones to float32; the Trainer sets gradient checkpointing.
    return prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]  # PEFT leaves it untyped
        model, use_gradient_checkpointing=False
    )


def add_adapter(model: Any, lora: LoraConfig, seed: int) -> Any:
    """`model` with a new LoRA adapter that depends on `seed` alone.

    Loading a base model or a persona draws random numbers. Without seeding again here the adapter would start
    differently under every persona, and a difference of seeds would look like a difference of personas.
    """
    from peft import get_peft_model

    set_seed(seed)
    return get_peft_model(model, peft_lora(lora))


def compose_model(base: Any, adapter: PersonaAdapter | None, lora: LoraConfig | None, seed: int) -> Any:
    """`base`, modified in place, with the persona's adapter and then a new one; `lora` None trains all weights.

    Raises:
        ConfigError: the persona's adapter cannot be loaded.
    """
    if adapter is not None and adapter.source.composition == "merge":
        base = persona_adapters.merge(base, adapter)
    model = base if lora is None else add_adapter(base, lora, seed)
    if adapter is not None and adapter.source.composition == "stack":
        persona_adapters.stack(model, adapter)
    return model


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """Turn gradients and dropout off inside, and restore the mode of the model afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def peft_lora(lora: LoraConfig) -> Any:
    """`lora` as a PEFT `LoraConfig`."""
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT annotates int and computes with floats
        use_rslora=lora.rslora,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        # Layers in another order are the same adapter, whose files have the same bytes.
        layers_to_transform=None if lora.layers_to_transform is None else sorted(set(lora.layers_to_transform)),
        task_type="CAUSAL_LM",
    )


def effective_optimizer(training: TrainingConfig) -> str:
    """The optimizer in the Trainer's naming: plain AdamW where bitsandbytes is not installed."""
    if training.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is not None:
        return "adamw_bnb_8bit"
    return "adamw_torch"
