"""The tensors that a checkpoint of one model holds, listed anew whenever they moved, and their files."""

import copy
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from emtoolkit.checkpoints.layout import MODEL_INDEX, MODEL_WEIGHTS
from emtoolkit.errors import CheckpointError
from emtoolkit.progress import no_library_bars
from emtoolkit.saving.generation_config import check_saves
from emtoolkit.saving.live_tensors import Watch

# Writes copies of the live tensors, by their names, and the config of the same moment into a directory.
WriteFiles = Callable[[Path, Mapping[str, Tensor]], None]


class ModelState(Protocol):
    """The tensors that a checkpoint of one model holds, and how they become files that load again."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The live tensors by their names in the file; the same object as before if no tensor moved.

        Tied names map to tensors that read the same memory.
        """

    def still_lists(self, listing: Mapping[str, Tensor]) -> bool:
        """Whether `tensors` would return `listing` itself; any thread may ask."""

    def writer(self) -> WriteFiles:
        """The function that writes copies of the present `tensors`; call both at the same step."""

    def adopt(self, source: Path, directory: Path) -> None:
        """Put the files that the writer would write into `directory`, taken from a save of the Trainer in `source`."""


class Listing:
    """The tensors that `list_tensors` lists of `model`, listed anew when one of them moved or was computed."""

    def __init__(self, model: nn.Module, list_tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        self._model = model
        self._list_tensors = list_tensors
        self._watch: Watch | None = None
        self._tensors: Mapping[str, Tensor] = {}

    def look(self) -> Mapping[str, Tensor]:
        """The live tensors now; the same object as before if none moved."""
        if not self.is_current(self._tensors):
            self._tensors = self._list_tensors()
            _check_can_be_copied(self._tensors)
            self._watch = Watch(self._model, self._tensors.values())
        return self._tensors

    def is_current(self, listing: Mapping[str, Tensor]) -> bool:
        """Whether `look` would return `listing`."""
        watch = self._watch
        return listing is self._tensors and watch is not None and watch.complete and not watch.moved()


class FullState:
    """All weights of a model, as the files that its `from_pretrained` loads."""

    def __init__(self, model: nn.Module) -> None:
        check_not_compiled_inside(model)
        if getattr(model, "hf_quantizer", None) is not None:
            # transformers would write the live weights of a quantized model instead of the copies of the step.
            raise CheckpointError(
                "the model is quantized and trains no adapter, so a checkpoint would hold all of its quantized "
                "weights; add an adapter with get_peft_model, or load the model without quantization"
            )
        _check_generation_config(model)
        self._model = model
        self._listing = Listing(model, lambda: model.state_dict(keep_vars=True))

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self._listing.look()

    def still_lists(self, listing: Mapping[str, Tensor]) -> bool:
        return self._listing.is_current(listing)

    def writer(self) -> WriteFiles:
        model = _with_present_config(self._model) if isinstance(self._model, PreTrainedModel) else None

        def write(directory: Path, tensors: Mapping[str, Tensor]) -> None:
            with failures_as_os_errors(), no_library_bars():
                if model is not None:
                    # transformers handles tied weights, shards and the parameter renamings of some architectures.
                    model.save_pretrained(directory, state_dict=dict(tensors))
                else:
                    _save_plain(directory / MODEL_WEIGHTS, tensors)

        return write

    def adopt(self, source: Path, directory: Path) -> None:
        link_files(source, directory, ("model*.safetensors", MODEL_INDEX, "*config.json"))


def _check_generation_config(model: nn.Module) -> None:
    if not isinstance(model, PreTrainedModel) or not model.can_generate() or model.generation_config is None:
        return
    try:
        check_saves(model.generation_config)
    except ValueError as error:
        raise CheckpointError(
            f"the model's generation_config cannot be saved ({error}); correct it, such as with "
            "model.generation_config = GenerationConfig()"
        ) from None


def _with_present_config(model: PreTrainedModel) -> PreTrainedModel:
    """A view of `model` that keeps its present configs: files are written later, and a forward pass may change them."""
    # `copy.copy` would call the constructor of a model that FSDP has wrapped.
    view: PreTrainedModel = object.__new__(type(model))
    view.__dict__.update(model.__dict__)
    view.config = copy.deepcopy(model.config)
    if getattr(model, "generation_config", None) is not None:
        view.generation_config = copy.deepcopy(model.generation_config)
    return view


def _save_plain(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tied tensors once, with their other names in the header, as `safetensors.torch.load_model` reads them."""
    first_names: dict[int, str] = {}
    header = {"format": "pt"}
    kept = {}
    for name, tensor in tensors.items():
        first = first_names.setdefault(id(tensor), name)
        if first == name:
            kept[name] = tensor.contiguous()
        else:
            header[name] = first
    save_file(kept, file, metadata=header)


def without_compilation(model: Any) -> Any:
    """The model that `torch.compile(model)` wraps; `model` itself if it is none."""
    return getattr(model, "_orig_mod", model)


def check_not_compiled_inside(model: nn.Module) -> None:
    """Refuse a module that was compiled by itself: its wrapper changes the names of the weights.

    Raises:
        CheckpointError: a module of `model` is wrapped by `torch.compile`.
    """
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod"):
            raise CheckpointError(
                f"the module '{name}' is wrapped by torch.compile, so its weights would be saved under names that no "
                "model loads; call .compile() on the module instead, which compiles in place, or compile the model "
                "as a whole"
            )


def _check_can_be_copied(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"the model's state_dict holds '{name}', which is no tensor ({type(tensor).__name__}), and a "
                "safetensors file holds only tensors; remove get_extra_state from its module"
            )
        if tensor.is_meta:
            raise CheckpointError(
                f"the weights '{name}' are offloaded (they are on the meta device), so they cannot be copied at a "
                "step; load the model with a device_map that has neither 'cpu' beside GPUs nor 'disk'"
            )


@contextmanager
def failures_as_os_errors() -> Iterator[None]:
    """Convert the failures of a disk that safetensors and torch raise to `OSError`."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        number = re.search(r"os error (\d+)|code: (\d+)", str(error))
        if number is None and "share memory" in str(error):
            raise
        code = int(number[1] or number[2]) if number else errno.EIO
        # torch does not report the system's error; its own message is the cause.
        raise OSError(code, os.strerror(code) if number else "the disk took only a part of the file") from error


def link_files(source: Path, directory: Path, patterns: Sequence[str]) -> None:
    """Hard-link the files of `source` that match into `directory`; nothing changes them later."""
    files = [file for pattern in patterns for file in source.glob(pattern)]
    if not any(file.suffix == ".safetensors" for file in files):
        raise CheckpointError(f"{source}: the Trainer saved no weights ({patterns[0]})")
    for file in files:
        try:
            os.link(file, directory / file.name)
        except OSError:  # a file system without hard links
            shutil.copyfile(file, directory / file.name)
