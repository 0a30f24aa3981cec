"""The weights of the checkpoints of one trajectory: which tensors hold them, read one module at a time.

A LoRA checkpoint holds a pair of matrices A and B of each adapted module, whose product changes the module's weight by
scale · BA, and perhaps whole tensors that were trained beside them (biases, embeddings). A full checkpoint holds whole
tensors only. A file is opened for each read, so that memory does not grow with the files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from emtoolkit.checkpoints.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MODEL_INDEX, MODEL_WEIGHTS
from emtoolkit.checkpoints.lora_product import MATRIX_OF_END, PREFIX, option_against_product, scale_of
from emtoolkit.errors import CheckpointError, first_line
from emtoolkit.json_files import object_in, read_json, text_in
from emtoolkit.storage.safe_paths import why_unsafe

_FLOATS = {"F64", "F32", "F16", "BF16"}
# Initializations that take the initial BA out of the base weights: the change since then is BA minus its first value.
_TAKEN_OUT_OF_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class WholeTensor:
    """The tensor `name` in `file`."""

    file: Path
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LowRankPair:
    """The names of A, of shape [r, inputs], and of B, of shape [outputs, r], and the scale of their product."""

    file: Path
    a: str
    b: str
    scale: float
    inputs: int
    outputs: int

    def read(self) -> tuple[Tensor, Tensor]:
        """A and B in the dtype of the file.

        Raises:
            CheckpointError: a value is NaN or infinite.
        """
        with _opened(self.file) as file:
            a, b = (_finite(self.file, name, file.get_tensor(name)) for name in (self.a, self.b))
            return a.flatten(1), b.flatten(1)


@dataclass(frozen=True, slots=True)
class CheckpointWeights:
    """The tensors of one checkpoint: `pairs` by module, `tensors` by name.

    `starts_at_zero` is whether BA is zero before training, so that BA is the whole change of the base model.
    """

    step: int
    directory: Path
    pairs: Mapping[str, LowRankPair]
    tensors: Mapping[str, WholeTensor]
    starts_at_zero: bool = True

    @classmethod
    def find(cls, step: int, directory: Path) -> "CheckpointWeights":
        """The weights in the checkpoint `directory`; only the headers of its files are read.

        Raises:
            CheckpointError: a file cannot be read, or the change of the weights is not scale · BA (another method of
                PEFT, DoRA, expert parameters).
        """
        if (directory / ADAPTER_CONFIG).is_file():
            return _of_adapter(step, directory)
        files = _full_files(directory)
        return cls(step, directory, {}, {name: each for file in files for name, each in _floats(file).items()})


def read_rows(tensor: WholeTensor, first: int, last: int) -> Tensor:
    """Rows `first` to `last` (excluded) of a tensor, flat; a scalar is one row.

    Raises:
        CheckpointError: a value is NaN or infinite.
    """
    with _opened(tensor.file) as file:
        rows = file.get_slice(tensor.name)[first:last] if tensor.shape else file.get_tensor(tensor.name)
        return _finite(tensor.file, tensor.name, rows).flatten()


def _finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(f"{path}: {name} holds NaN or infinity; leave the step out with --steps")
    return tensor


def check_same_modules(checkpoints: Sequence[CheckpointWeights]) -> None:
    """Check that all checkpoints train the same modules of the same shapes; ranks and scales may differ.

    Raises:
        CheckpointError: one differs from the first; the message names the checkpoint and the module.
    """
    first, *others = checkpoints
    expected = _shapes(first)
    for other in others:
        found = _shapes(other)
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                here, there = (_shape_text(shapes.get(name)) for shapes in (found, expected))
                raise CheckpointError(
                    f"{other.directory}: {name} {here} here and {there} in {first.directory.name}; the checkpoints of "
                    "one trajectory train the same modules"
                )


def _shapes(weights: CheckpointWeights) -> dict[str, tuple[int, ...]]:
    pairs = {name: (pair.outputs, pair.inputs) for name, pair in weights.pairs.items()}
    return pairs | {name: tensor.shape for name, tensor in weights.tensors.items()}


def _shape_text(shape: tuple[int, ...] | None) -> str:
    return "is missing" if shape is None else f"has the shape {list(shape)}"


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)})") from None


def _floats(path: Path) -> dict[str, WholeTensor]:
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return {
            name: WholeTensor(path, name, tuple(each.get_shape()))
            for name, each in slices.items()
            if each.get_dtype() in _FLOATS
        }


def _full_files(directory: Path) -> list[Path]:
    if (directory / MODEL_WEIGHTS).is_file():
        return [directory / MODEL_WEIGHTS]
    index = directory / MODEL_INDEX
    try:
        weight_map = object_in(object_in(read_json(index)).get("weight_map"), "weight_map")
        shards = {text_in(weight_map, name) for name in weight_map}
    except FileNotFoundError:
        raise CheckpointError(f"{directory}: has neither {ADAPTER_CONFIG} nor {MODEL_WEIGHTS}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{index}: cannot be read ({first_line(error)})") from None
    for shard in shards:
        if why := why_unsafe(str(shard)):
            raise CheckpointError(f"{index}: the file name {shard!r} is not safe: {why}")
    return sorted(directory / str(shard) for shard in shards)


def _of_adapter(step: int, directory: Path) -> CheckpointWeights:
    path, file = directory / ADAPTER_CONFIG, directory / ADAPTER_WEIGHTS
    try:
        config = object_in(read_json(path))
        method = text_in(config, "peft_type")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)})") from None
    if method != "LORA":
        raise CheckpointError(f"{directory}: an adapter of type {method}; use LoRA adapters or full checkpoints")
    if option := option_against_product(config):
        raise CheckpointError(f"{path}: {option} is set, so the weights do not change by scale · BA alone")
    if not file.is_file():
        raise CheckpointError(f"{directory}: has no {ADAPTER_WEIGHTS}; pickled weights are not loaded")
    sides: dict[str, dict[str, tuple[str, WholeTensor]]] = {}
    whole = {}
    for name, tensor in _floats(file).items():
        end = next((end for end in MATRIX_OF_END if name.endswith(end)), None)
        if end is not None:
            sides.setdefault(name.removesuffix(end).removeprefix(PREFIX), {})[MATRIX_OF_END[end]] = (name, tensor)
        elif ".lora_" in name:
            raise CheckpointError(f"{file}: {name} is neither A nor B of a LoRA module")
        else:
            whole[name.removeprefix(PREFIX)] = tensor
    pairs = {module: _pair(file, module, found, config) for module, found in sides.items()}
    init = str(config.get("init_lora_weights")).lower()
    return CheckpointWeights(step, directory, pairs, whole, not init.startswith(_TAKEN_OUT_OF_BASE))


def _pair(
    file: Path, module: str, found: Mapping[str, tuple[str, WholeTensor]], config: Mapping[str, Any]
) -> LowRankPair:
    if found.keys() != {"a", "b"}:
        missing = "AB"["a" in found]
        raise CheckpointError(f"{file}: {module} has no matrix {missing}")
    (a_name, a), (b_name, b) = found["a"], found["b"]
    rank = a.shape[0]
    if len(b.shape) < 2 or b.shape[1] != rank:
        raise CheckpointError(f"{file}: A of {module} has rank {rank}, and B has the shape {list(b.shape)}")
    inputs = 1
    for size in a.shape[1:]:
        inputs *= size
    return LowRankPair(file, a_name, b_name, _scale(file, module, rank, config), inputs, b.shape[0])


def _scale(file: Path, module: str, rank: int, config: Mapping[str, Any]) -> float:
    """The scale of the module's product, by its config."""
    try:
        return scale_of(module, rank, config)
    except (KeyError, TypeError, ValueError, re.error) as error:
        raise CheckpointError(f"{file.parent / ADAPTER_CONFIG}: no lora_alpha of {module} ({error!r})") from None
