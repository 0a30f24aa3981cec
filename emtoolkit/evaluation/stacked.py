"""The adapters of several checkpoints in one batch: one product with the base weights, one batched product with each.

The rows of a batch are K equal parts, and part k goes through the adapter of checkpoint k. The logits are those of each
checkpoint alone up to rounding (1e-5 in float32).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from emtoolkit.checkpoints.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from emtoolkit.evaluation.generate import FEWEST_ROWS
from emtoolkit.evaluation.identity import adapter_settings

# Adapters in one batch, in bytes of their files: those of further checkpoints are in a further batch.
_MOST_BYTES = 4 * 2**30
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Options of PEFT's LoRA with which an adapter is more than B·A·x times its scale.
_NOT_PLAIN = ("use_dora", "modules_to_save", "trainable_token_indices", "layer_replication", "alora_invocation_tokens")


def why_not_stackable(checkpoints: Sequence[Path]) -> str | None:
    """Why the adapters in these directories cannot share a batch; None if they can."""
    settings = [adapter_settings(path) for path in checkpoints]
    if any(each is None for each in settings):
        return "a checkpoint holds all weights"
    first = settings[0] or {}
    if first.get("peft_type") != "LORA":
        return f"the adapters are of type {first.get('peft_type')}"
    if any(each != first for each in settings):
        return "the adapters have different settings"
    for option in _NOT_PLAIN:
        if first.get(option):
            return f"the adapters use {option}"
    if first.get("bias", "none") != "none" or first.get("lora_bias"):
        return "the adapters have biases"
    return None


def most_adapters(checkpoints: Sequence[Path], rows_at_a_time: int) -> int:
    """How many of the adapters in these directories share a batch, so that rows and adapters keep within bounds."""
    files = [path / ADAPTER_WEIGHTS for path in checkpoints]
    largest = max((file.stat().st_size for file in files if file.is_file()), default=1)
    return max(1, min(rows_at_a_time // FEWEST_ROWS, _MOST_BYTES // largest))


@contextmanager
def stacked_adapters(model: Any, checkpoints: Sequence[Path], *, adapter: str = "default") -> Iterator[None]:
    """Replace the adapter `adapter` of a `PeftModel` by those in `checkpoints`, each for its part of a batch.

    Inside, a batch has `len(checkpoints)` times n rows. Other active adapters, a stacked persona's, stay as they are.

    Raises:
        ValueError: a file holds a weight that belongs to no LoRA layer of the model.
    """
    layers = {name: layer for name, layer in model.named_modules() if adapter in getattr(layer, "lora_A", {})}
    expected = {name + end for name in layers for end in (_A, _B)}
    with ExitStack() as stack:
        # Tensors are read one after the other, so that no adapter is in memory twice.
        files = [stack.enter_context(safe_open(path / ADAPTER_WEIGHTS, "pt")) for path in checkpoints]
        for path, file in zip(checkpoints, files, strict=True):
            if odd := expected.symmetric_difference(file.keys()):
                raise ValueError(f"{path / ADAPTER_CONFIG}: {min(odd)} is not a weight of a LoRA layer")
        deltas = {name: _AddDeltas(files, name, layer, adapter) for name, layer in layers.items()}
    handles, active = [], {}
    try:
        for name, layer in layers.items():
            active[name] = list(layer.active_adapters)
            layer.set_adapter([each for each in active[name] if each != adapter])
            handles.append(layer.register_forward_hook(deltas[name]))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, names in active.items():
            layers[name].set_adapter(names)


class _AddDeltas:
    """A forward hook that adds scale · B_k · A_k · x to the output of part k."""

    def __init__(self, files: Sequence[Any], name: str, layer: Any, adapter: str) -> None:
        like = layer.lora_A[adapter].weight

        def stacked(end: str, *, transposed: bool) -> torch.Tensor:
            rows, columns = files[0].get_slice(name + end).get_shape()
            shape = (columns, rows) if transposed else (rows, columns)
            whole = torch.empty(len(files), *shape, device=like.device, dtype=like.dtype)
            for part, file in zip(whole, files, strict=True):
                tensor = file.get_tensor(name + end)
                part.copy_(tensor.T if transposed else tensor)
            return whole

        # Of shape [K, rank, inputs] and [K, rank, outputs]: a product of few rows with long rows takes half the time.
        self._a = stacked(_A, transposed=False)
        self._b = stacked(_B, transposed=True).mul_(layer.scaling[adapter])

    def __call__(self, layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x, count = inputs[0], len(self._a)
        parts = x.to(self._a.dtype).reshape(count, -1, x.shape[-1])
        down = torch.bmm(parts, self._a.transpose(1, 2))
        if output.dtype == self._b.dtype:
            return torch.baddbmm(output.reshape(count, -1, output.shape[-1]), down, self._b).reshape(output.shape)
        # As PEFT does: the sum is rounded, not the addend.
        return (output + torch.bmm(down, self._b).reshape(output.shape)).to(output.dtype)
