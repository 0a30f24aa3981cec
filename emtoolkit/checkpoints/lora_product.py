"""How a LoRA adapter changes the weight of a module: by scale · BA, as its `adapter_config.json` and its names say."""

import re
from collections.abc import Mapping
from typing import Any

PREFIX = "base_model.model."
MATRIX_OF_END = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
}
# Options of PEFT's LoRA with which the weight changes by something else than scale · BA.
_NOT_A_PRODUCT = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "target_parameters"),
    *("kasa_config", "monteclora_config", "arrow_config"),
)


def option_against_product(config: Mapping[str, Any]) -> str | None:
    """The option of the adapter with this config, of type LORA, that makes the change another than scale · BA."""
    return next((option for option in _NOT_A_PRODUCT if config.get(option)), None)


def scale_of(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """lora_alpha/r, or lora_alpha/√r for rsLoRA (arXiv 2312.03732), with PEFT's alpha_pattern of the module.

    Raises:
        KeyError, TypeError, ValueError, re.error: the config has no such alpha.
    """
    patterns = dict(config.get("alpha_pattern") or {})
    key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
    alpha = float(config["lora_alpha"] if key is None else patterns[key])
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))
