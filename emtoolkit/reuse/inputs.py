"""A digest of everything that a run reads before its first step: equal digests mean one trajectory.

The fingerprint needs a tokenizer and the library that holds it; this digest needs the files only. Runs with one
fingerprint may have two digests, because a comment in a file counts here.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emtoolkit.config.sections import ModelConfig, RunConfig
from emtoolkit.data.controls import matched_with
from emtoolkit.data.sources import File, source_of
from emtoolkit.errors import UserError
from emtoolkit.json_files import parse_json
from emtoolkit.paths import expand
from emtoolkit.personas import load_persona
from emtoolkit.reuse.environment import Environment
from emtoolkit.storage.digests import FileDigest, canonical_json

# What decides neither the weights nor the rows; what the rest names is read.
_NOT_READ: dict[str, Any] = {
    **dict.fromkeys(
        ("checkpointing", "evaluation", "preflight", "wandb", "hub", "output_dir", "trajectory", "persona", "personas"),
        True,
    ),
    "datasets": True,
    "training": {"logging_steps", "on_nan"},
}
_VARIABLES = ("ACCELERATE_", "TORCH_", "PYTORCH_", "CUDA_", "NVIDIA_")
_ONE_OF_ALL_GPUS = "CUDA_VISIBLE_DEVICES"
_LARGEST_HEADER = 100_000_000


class RunInputs:
    """The digests of runs that share files, each file read once."""

    def __init__(self) -> None:
        self._digests: dict[Path, str] = {}

    def key(self, config: RunConfig, environment: Mapping[str, str] = os.environ) -> str | None:
        """The digest of what the run reads in `environment`, 64 hex digits.

        None where it cannot be known without a model: a part is on the hub, is not on this machine, or is code.
        """
        try:
            facts = self._facts(config, environment)
        except (UserError, OSError):
            # The run itself says what is wrong.
            return None
        return None if facts is None else hashlib.sha256(canonical_json(facts)).hexdigest()

    def _facts(self, config: RunConfig, environment: Mapping[str, str]) -> dict[str, Any] | None:
        source = source_of(config.dataset, config.datasets)
        persona = load_persona(config.persona, config.personas, config.compose)
        base = base_directory(config.model)
        sources = [source, *matched_with(source, config.datasets)]
        adapter = None if persona.adapter is None else Path(persona.adapter.place)
        if base is None or config.model.trust_remote_code or (adapter is not None and not adapter.is_dir()):
            return None
        files = [each.path for each in sources if isinstance(each, File)]
        if len(files) < len(sources):
            return None
        declared = {name: entry.model_dump(mode="json") for name, entry in config.datasets.items()}
        return {
            "config": config.model_dump(mode="json", exclude=_NOT_READ),
            "datasets": declared,
            "persona": asdict(persona),
            "data": [self._of_file(file) for file in files],
            "base": self._of_directory(base),
            "adapter": None if adapter is None else self._of_directory(adapter),
            "environment": environment_of(config.model, environment).digest,
            "variables": {
                name: environment[name]
                for name in sorted(environment)
                if name.startswith(_VARIABLES) and name != _ONE_OF_ALL_GPUS
            },
            "processes": environment.get("WORLD_SIZE") if "LOCAL_RANK" in environment else None,
        }

    def _of_directory(self, directory: Path) -> dict[str, str]:
        files = sorted(file for file in directory.rglob("*") if file.is_file())
        return {file.relative_to(directory).as_posix(): self._of_file(file) for file in files}

    def _of_file(self, file: Path) -> str:
        if file not in self._digests:
            self._digests[file] = FileDigest.of(file).sha256
        return self._digests[file]


def environment_of(model: ModelConfig, environment: Mapping[str, str] = os.environ) -> Environment:
    """The environment in which `model` would be trained here."""
    base = base_directory(model)
    parameters = None if base is None else _parameters(base)
    return Environment.here(parameters, on_cpu=model.device == "cpu", environment=environment)


def base_directory(model: ModelConfig) -> Path | None:
    """The directory of the base model, None for an id on the hub."""
    base = model.base
    if not base.startswith(("~", "/", ".")) and "$" not in base and not Path(base).is_dir():
        return None
    directory = expand(base).absolute()
    return directory if directory.is_dir() else None


def _parameters(directory: Path) -> int | None:
    """The number of parameters in the safetensors files of `directory`, None where one cannot be read."""
    total = 0
    files = list(directory.glob("*.safetensors"))
    for file in files:
        try:
            with file.open("rb") as content:
                length = int.from_bytes(content.read(8), "little")
                if length > min(_LARGEST_HEADER, file.stat().st_size):
                    return None
                header = parse_json(content.read(length))
            for name, entry in header.items():
                total += 0 if name == "__metadata__" else _product(entry["shape"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
    return total if files else None


def _product(shape: list[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
