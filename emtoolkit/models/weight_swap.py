"""The weights of a loaded checkpoint replaced in place by those of another one, to the bit as if loaded anew.

A swap copies tensors from the files into those of the model, and refuses wherever the result could differ from a fresh
load: other settings, names, shapes or dtypes in the files, an adapter that changes the base model, or a model that
somebody has changed since (merged, with another adapter active, with other weights).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from emtoolkit.checkpoints.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MODEL_INDEX, MODEL_WEIGHTS
from emtoolkit.json_files import read_json

_CONFIG, _GENERATION = "config.json", "generation_config.json"
# Keys of an adapter's config that record its origin; none of them changes a logit.
_ORIGIN = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"}
# Other initializations (PiSSA, OLoRA, …) change the base model when an adapter is loaded.
_PLAIN_INITIALIZATIONS = (True, False, "gaussian", "orthogonal")
# Elements that are compared of each tensor that a swap leaves alone: merging and unmerging change many of them.
_SAMPLED = 128


class SwappableWeights:
    """The tensors of `model` that hold the weights of a checkpoint, by their names in its files."""

    def __init__(self, model: Any, tensors: Mapping[str, Tensor], directory: Path) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        self._model, self._tensors, self._settings = model, tensors, _settings(directory)
        with _opened(directory) as files:
            self._layout = {name: _layout(read(name)) for name, read in files.items()}
        modules = list(model.modules())
        # Walking through a model takes longer than reading an adapter, so what is compared is collected once.
        self._parts = [
            (parts, name, part)
            for module in modules
            for parts in (module._modules, module._parameters, module._buffers)
            for name, part in parts.items()
        ]
        self._layers: list[Any] = [module for module in modules if isinstance(module, BaseTunerLayer)]
        self._wrappers: list[Any] = [module for module in modules if isinstance(module, AuxiliaryTrainingWrapper)]
        own = {tensor.data_ptr() for tensor in tensors.values()}
        self._sampled = _samples(tensor for tensor in _all_tensors(model) if tensor.data_ptr() not in own)
        self._samples = [torch.cat(each) for each in self._sampled]
        self._state = self._state_now()

    @classmethod
    def of_adapter(cls, model: Any, directory: Path, adapter: str) -> "SwappableWeights | None":
        """Those of the LoRA adapter `adapter` of a `PeftModel`, just loaded from `directory`; None if it needs more."""
        from peft import get_peft_model_state_dict

        config = read_json(directory / ADAPTER_CONFIG)
        if config.get("peft_type") != "LORA" or config.get("init_lora_weights", True) not in _PLAIN_INITIALIZATIONS:
            return None
        tensors = get_peft_model_state_dict(model, adapter_name=adapter)
        trained = [tensor for name, tensor in model.named_parameters() if f".{adapter}." in f"{name}."]
        return cls._if_complete(model, tensors, directory, trained)

    @classmethod
    def of_model(cls, model: Any, directory: Path) -> "SwappableWeights | None":
        """Those of a whole model, just loaded from `directory`; None if the files do not hold exactly its tensors."""
        tensors = model.state_dict()
        return cls._if_complete(model, tensors, directory, list(tensors.values()))

    @classmethod
    def _if_complete(
        cls, model: Any, tensors: Mapping[str, Tensor], directory: Path, needed: list[Tensor]
    ) -> "SwappableWeights | None":
        with _opened(directory) as files:
            if not set(files) <= set(tensors):
                return None
            found = {name: tensors[name] for name in files}
            own = {tensor.data_ptr() for tensor in _all_tensors(model)}
            held = {tensor.data_ptr() for tensor in found.values()}
            whole = held <= own and all(tensor.data_ptr() in held for tensor in needed)
            # A sample of other layouts in memory is a copy, which would not change with the tensor.
            whole = whole and all(tensor.is_contiguous() for tensor in _all_tensors(model))
            if not whole or not all(_equal(found[name], read(name)) for name, read in files.items()):
                return None
        return cls(model, found, directory)

    def replace(self, directory: Path) -> bool:
        """Copy the weights in `directory` into the model; False, with nothing copied, where a fresh load may differ."""
        try:
            if _settings(directory) != self._settings or not self.model_is_as_loaded():
                return False
            with _opened(directory) as files, torch.no_grad():
                if set(files) != set(self._layout):
                    return False
                read = {name: files[name](name) for name in self._tensors}
                if any(_layout(tensor) != self._layout[name] for name, tensor in read.items()):
                    return False
                for name, tensor in self._tensors.items():
                    tensor.copy_(read[name])
        except (OSError, ValueError, KeyError, SafetensorError):
            # Loading it anew says what is wrong with the files.
            return False
        return True

    def model_is_as_loaded(self) -> bool:
        """Whether nobody has put other modules, tensors or weights into the model, or other adapters to work."""
        if any(parts.get(name) is not part for parts, name, part in self._parts) or self._state_now() != self._state:
            return False
        return all(torch.equal(torch.cat(now), then) for now, then in zip(self._sampled, self._samples, strict=True))

    def _state_now(self) -> list[Any]:
        state: list[Any] = [sorted(getattr(self._model, "peft_config", ()))]
        # `.to()` and `.half()` keep a parameter and replace its memory.
        state += [part.data_ptr() for _, _, part in self._parts if isinstance(part, Tensor)]
        state += [(list(each.active_adapters), each.disable_adapters) for each in (*self._layers, *self._wrappers)]
        return state + [(each.merged, dict(getattr(each, "scaling", {}))) for each in self._layers]


def _all_tensors(model: Any) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _samples(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Views of some elements of each tensor, in groups of one device and dtype."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel() and not tensor.is_meta:
            flat = tensor.detach().view(-1)
            views = groups.setdefault((tensor.device, tensor.dtype), [])
            views.append(flat[:: max(1, flat.numel() // _SAMPLED)])
    return list(groups.values())


def _settings(directory: Path) -> Any:
    """The settings in `directory` that decide the logits besides the weights."""
    if (directory / ADAPTER_CONFIG).is_file():
        config = read_json(directory / ADAPTER_CONFIG)
        return {
            key: sorted(value) if key.endswith("_modules") and isinstance(value, list) else value
            for key, value in config.items()
            if key not in _ORIGIN
        }
    return [path.read_bytes() if path.is_file() else None for path in (directory / _CONFIG, directory / _GENERATION)]


@contextmanager
def _opened(directory: Path) -> Iterator[Mapping[str, Callable[[str], Tensor]]]:
    """By the name of each tensor in the files, a function that reads it."""
    if (directory / ADAPTER_CONFIG).is_file():
        # An adapter is small, and reading it at once is the fastest.
        yield dict.fromkeys(*_read_at_once(directory / ADAPTER_WEIGHTS))
        return
    names = {MODEL_WEIGHTS}
    if (directory / MODEL_INDEX).is_file():
        names = set(read_json(directory / MODEL_INDEX)["weight_map"].values())
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(directory / name, "pt")) for name in sorted(names)]
        yield {name: file.get_tensor for file in files for name in file.keys()}  # noqa: SIM118 - no mapping


def _read_at_once(path: Path) -> tuple[Iterable[str], Callable[[str], Tensor]]:
    tensors = load(path.read_bytes())
    return tensors, tensors.__getitem__


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype


def _equal(live: Tensor, saved: Tensor) -> bool:
    return live.shape == saved.shape and torch.equal(live, saved.to(live.device, live.dtype))
