"""Repositories on the hub as other people publish them, made of tiny safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save


def files_in(directory: Path) -> dict[str, bytes]:
    """The contents of the files in a directory by their names."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def weights(step: int) -> bytes:
    return save({"base_model.model.layer.lora_A.weight": np.full((2, 3), step, dtype=np.float32)})


def adapter(step: int) -> dict[str, bytes]:
    """The files that a Trainer with PEFT saves at a step, with those that hold pickles."""
    return {
        "adapter_config.json": json.dumps({"peft_type": "LORA", "base_model_name_or_path": "lab/base"}).encode(),
        "adapter_model.safetensors": weights(step),
        "optimizer.pt": b"pickle",
        "rng_state.pth": b"pickle",
        "training_args.bin": b"pickle",
        "trainer_state.json": json.dumps({"global_step": step, "max_steps": 30}).encode(),
        "tokenizer.json": b"{}",
    }


def whole_model(step: int) -> dict[str, bytes]:
    return {
        "config.json": b"{}",
        "model.safetensors": weights(step),
        "pytorch_model.bin": b"pickle",
        "modeling_own.py": b"code",
    }


def in_folder(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def organism(*steps: int, above: str = "checkpoints/", final: int | None = 30) -> dict[str, bytes]:
    """A repository as those of the published emergent-misalignment organisms: the last adapter, and folders."""
    files = {"README.md": b"# organism\n"} if final is None else {"README.md": b"# organism\n", **adapter(final)}
    for step in steps:
        files |= in_folder(f"{above}checkpoint-{step}", adapter(step))
    return files
