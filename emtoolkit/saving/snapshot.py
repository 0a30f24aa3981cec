"""Copies of a model's state at one step, in buffers that are reused from save to save.

The tensors are listed once per training: PEFT returns tensors that alias the live parameters, and optimizers update
parameters in place, so a save only copies memory. Writing the live tensors without a copy produced wrong files.
"""

import errno
import os
import queue
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from emtoolkit.checkpoints.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MODEL_INDEX
from emtoolkit.errors import CheckpointError
from emtoolkit.progress import no_library_bars
from emtoolkit.storage.digests import canonical_json


class ModelState(Protocol):
    """The tensors that a checkpoint of one model holds, and how they become files that load again."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The live tensors by their names in the file; tied names map to the same object."""

    def write(self, directory: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write `tensors`, copies of the live tensors, and the config into `directory`."""

    def adopt(self, source: Path, directory: Path) -> None:
        """Put the files that `write` would write into `directory`, taken from a save of the Trainer in `source`."""


class AdapterState:
    """The trainable PEFT adapter of a model, as the two files that `PeftModel.from_pretrained` loads."""

    def __init__(self, model: Any) -> None:
        from peft import get_peft_model_state_dict
        from peft.utils.other import EMBEDDING_LAYER_NAMES

        self._name = _trainable_adapter(model)
        config = model.peft_config[self._name]
        targets = config.target_modules or ()
        # PEFT's default "auto" queries the hub for the base model's vocabulary at every save.
        embeddings = any(layer in targets for layer in EMBEDDING_LAYER_NAMES)
        self._tensors: dict[str, Tensor] = get_peft_model_state_dict(
            model,
            state_dict=model.state_dict(keep_vars=True),
            adapter_name=self._name,
            save_embedding_layers=embeddings,
        )
        values = config.to_dict() | {"inference_mode": True}
        base = getattr(model.get_base_model(), "name_or_path", None)
        values["base_model_name_or_path"] = values.get("base_model_name_or_path") or base
        if config.task_type is None:
            # As PEFT does, so that AutoPeftModel finds the class.
            base_class = type(model.get_base_model())
            values["auto_mapping"] = {"base_model_class": base_class.__name__, "parent_library": base_class.__module__}
        # PEFT keeps target modules in a set, whose order depends on PYTHONHASHSEED.
        self._config = canonical_json({key: sorted(v) if isinstance(v, set) else v for key, v in values.items()})

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self._tensors

    def write(self, directory: Path, tensors: Mapping[str, Tensor]) -> None:
        with failures_as_os_errors():
            save_file(dict(tensors), directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (directory / ADAPTER_CONFIG).write_bytes(self._config)

    def adopt(self, source: Path, directory: Path) -> None:
        _link(source, directory, (ADAPTER_WEIGHTS,))
        (directory / ADAPTER_CONFIG).write_bytes(self._config)


class FullState:
    """All weights of a model, as the files that its `from_pretrained` loads."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self._tensors

    def write(self, directory: Path, tensors: Mapping[str, Tensor]) -> None:
        # transformers handles tied weights, shards and the parameter renamings of some architectures.
        with failures_as_os_errors(), no_library_bars():
            self._model.save_pretrained(directory, state_dict=dict(tensors))

    def adopt(self, source: Path, directory: Path) -> None:
        _link(source, directory, ("model*.safetensors", MODEL_INDEX, "*config.json"))


@contextmanager
def failures_as_os_errors() -> Iterator[None]:
    """Convert safetensors and torch write failures to `OSError`."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        number = re.search(r"os error (\d+)|code: (\d+)", str(error))
        code = int(number[1] or number[2]) if number else errno.EIO
        # torch does not report the system's error; its own message is the cause.
        raise OSError(code, os.strerror(code) if number else "the disk took only a part of the file") from error


def model_state(model: Any) -> ModelState:
    """The state that checkpoints of `model` hold: the trainable adapter under PEFT, otherwise all weights.

    Raises:
        CheckpointError: the model trains no adapter, or more than one.
    """
    return AdapterState(model) if hasattr(model, "peft_config") else FullState(model)


def _link(source: Path, directory: Path, patterns: Sequence[str]) -> None:
    """Hard-link the files of `source` that match into `directory`; nothing changes them later."""
    files = [file for pattern in patterns for file in source.glob(pattern)]
    if not any(file.suffix == ".safetensors" for file in files):
        raise CheckpointError(f"{source}: the Trainer saved no weights ({patterns[0]})")
    for file in files:
        try:
            os.link(file, directory / file.name)
        except OSError:  # a file system without hard links
            shutil.copyfile(file, directory / file.name)


def _trainable_adapter(model: Any) -> str:
    trainable = {
        name
        for name in model.peft_config
        if any(p.requires_grad and f".{name}." in f".{key}." for key, p in model.named_parameters())
    }
    if len(trainable) != 1:
        raise CheckpointError(
            f"the model trains {len(trainable)} of its adapters ({', '.join(model.peft_config)}); a checkpoint holds "
            "exactly one, so make exactly one trainable"
        )
    return str(trainable.pop())


# Up to this size in bytes a copy through the buffer protocol is faster, because no operator is dispatched (0.6 ms
# instead of 0.8 ms for the 112 tensors of a 9.6 MB LoRA); above it torch's threads are faster.
_LARGE = 512 * 1024


class _Buffers:
    """Memory for one copy of the tensors `live`."""

    def __init__(self, live: Sequence[Tensor]) -> None:
        self.tensors = [torch.empty_like(t, device="cpu", pin_memory=t.is_cuda) for t in live]
        pairs = list(zip(self.tensors, live, strict=True))
        self._small = [(_memory(target), _memory(source)) for target, source in pairs if _is_small(source)]
        self._targets = [target for target, source in pairs if not _is_small(source)]
        self._sources = [source for source in live if not _is_small(source)]

    def fill(self, *, non_blocking: bool) -> None:
        """Copy the live tensors."""
        for target, source in self._small:
            target[:] = source
        if self._targets:
            with torch.no_grad():
                torch._foreach_copy_(self._targets, self._sources, non_blocking=non_blocking)


def _is_small(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.nbytes <= _LARGE


def _memory(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The tensors of one step in CPU memory; call `wait` before reading them."""

    step: int
    buffers: _Buffers
    names: Mapping[str, int]
    copied: "torch.cuda.Event | None"

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The copies by name; tied names map to the same object."""
        return {name: self.buffers.tensors[i] for name, i in self.names.items()}

    @property
    def bytes(self) -> int:
        """The size of the tensors; tied tensors count once."""
        return sum(tensor.nbytes for tensor in self.buffers.tensors)

    def wait(self) -> None:
        """Wait until an asynchronous copy from the GPU has finished."""
        if self.copied is not None:
            self.copied.synchronize()


class SnapshotBuffers:
    """At most `max_in_flight` copies of a model's state; another copy waits until an older one is released."""

    def __init__(self, state: ModelState, max_in_flight: int) -> None:
        by_storage: dict[tuple[Any, ...], int] = {}
        self._live: list[Tensor] = []
        self._names: dict[str, int] = {}
        for name, tensor in state.tensors.items():
            # Tied weights are two tensors on one storage, which is copied once.
            key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape)
            if key not in by_storage:
                by_storage[key] = len(self._live)
                self._live.append(tensor.detach())
            self._names[name] = by_storage[key]
        self._on_gpu = any(tensor.is_cuda for tensor in self._live)
        self._free: queue.SimpleQueue[_Buffers] = queue.SimpleQueue()
        self._not_yet_allocated = max_in_flight
        self.waited_seconds = 0.0
        self.waits = 0

    def prepare(self) -> None:
        """Allocate the first copy now, so that the first save does not; others are allocated when needed."""
        self.release(self.take(step=0))

    def take(self, step: int) -> Snapshot:
        """Copy the live tensors of `step`; called by the training thread."""
        buffers = self._take_buffers()
        buffers.fill(non_blocking=self._on_gpu)
        copied = None
        if self._on_gpu:
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            copied.record()
        return Snapshot(step, buffers, self._names, copied)

    def release(self, snapshot: Snapshot) -> None:
        """Reuse the memory of `snapshot`; its tensors must not be read afterwards."""
        self._free.put(snapshot.buffers)

    def _take_buffers(self) -> _Buffers:
        try:
            return self._free.get_nowait()
        except queue.Empty:
            pass
        if self._not_yet_allocated > 0:
            self._not_yet_allocated -= 1
            return _Buffers(self._live)
        started = time.perf_counter()
        buffers = self._free.get()
        self.waits += 1
        self.waited_seconds += time.perf_counter() - started
        return buffers
