"""Trajectories of synthetic LoRA adapters, in PEFT's layout: matrices that a test chooses at chosen steps."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

PREFIX = "base_model.model."


def write_path(
    directory: Path, steps: Mapping[int, Mapping[str, tuple[Tensor, Tensor]]], config: Mapping[str, Any] | None = None
) -> Path:
    """`steps[step][module]` is (A, B); the scale is 1 unless `config` says otherwise."""
    for step, modules in steps.items():
        place = directory / f"checkpoint-{step}"
        place.mkdir(parents=True)
        tensors = {}
        for module, (a, b) in modules.items():
            tensors |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / "adapter_model.safetensors")
        rank = next(iter(modules.values()))[0].shape[0]
        settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank} | dict(config or {})
        (place / "adapter_config.json").write_text(json.dumps(settings))
        state = {"global_step": step, "max_steps": max(steps), "log_history": [{"step": step, "grad_norm": step / 10}]}
        (place / "trainer_state.json").write_text(json.dumps(state))
    return directory


def vector_path(directory: Path, points: Mapping[int, Tensor], config: Mapping[str, Any] | None = None) -> Path:
    """One module of rank 1 whose BA is the vector of each step, a row: A is the vector and B is 1."""
    one = torch.ones(1, 1, dtype=torch.float64)
    return write_path(
        directory, {step: {"q": (point[None].to(torch.float64), one)} for step, point in points.items()}, config
    )
