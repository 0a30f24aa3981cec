"""The base model of another tool's checkpoint, which its adapter names or which the checkpoint is itself."""

from pathlib import Path
from typing import Any, Literal, get_args

from emtoolkit.checkpoints.declared import DeclaredManifest
from emtoolkit.checkpoints.layout import ADAPTER_CONFIG
from emtoolkit.config.sections import ModelConfig
from emtoolkit.errors import CheckpointError
from emtoolkit.json_files import object_in, read_json

_Dtype = Literal["float32", "bfloat16", "float16"]


def declared_base(directory: Path, manifest: DeclaredManifest, base: str | None) -> ModelConfig:
    """The base model of the checkpoint in `directory`: `base` if it is given, in the type of its own weights.

    Raises:
        CheckpointError: the adapter names no base model, or a directory that is not on this machine.
    """
    record = manifest.base_model
    place, revision = base, None
    if place is None:
        is_adapter = (directory / ADAPTER_CONFIG).is_file()
        place, revision = (record.name, record.revision) if is_adapter else (str(directory), None)
    if place is None or (base is None and place.startswith(("/", "~", ".")) and not Path(place).is_dir()):
        named = "names no base model" if place is None else f"names the base model {place!r}, which is not here"
        raise CheckpointError(f"{directory / ADAPTER_CONFIG}: {named}; pass --base with its place or hub id")
    return ModelConfig(base=place, revision=revision, dtype=_dtype(place, revision))


def _dtype(place: str, revision: str | None) -> _Dtype:
    """The type in which the weights are published: in another one the answers of most models differ."""
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(place, revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError):
        # Loading the model says what is wrong.
        return "float32"
    name = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return next((known for known in get_args(_Dtype) if known == name), "float32")


def named_by_adapter(directory: Path) -> str | None:
    """The base model in the config of the adapter in `directory`; None without an adapter.

    Raises:
        CheckpointError: the config cannot be read.
    """
    try:
        config = object_in(read_json(directory / ADAPTER_CONFIG))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / ADAPTER_CONFIG}: cannot be read ({error})") from error
    named = config.get("base_model_name_or_path")
    return None if named is None else str(named)
