"""Any configured value as JSON: equal for equal values, whatever their containers, and without memory addresses."""

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
import xxhash

from emtoolkit.saving.own_code import bytecode_digest, functions_of, has_own_code, is_own, names_in, qualified_name
from emtoolkit.storage.digests import canonical_json

_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, type)
# Larger arrays are digested as bytes; a small one equals the list of its numbers.
_SMALL = 65_536
# Bytes of a tensor in one copy to the CPU.
_PART = 2**26
# Attributes of an object are followed this far.
_DEPTH = 6


def describe(value: Any, trained: torch.nn.Module | None = None) -> Any:
    """`value` as a JSON value; `trained` is the model in training, whose weights are left out.

    Numbers of equal value are equal, as are a list, a tuple and an array of the same numbers, and a path and its text.
    A set is sorted. A function or class of a library is its name; of the user's, name and digest of the bytecode, with
    the functions and constants that the code uses, so another minor version of Python gives own code another digest.
    A module is its class, its weights and its numbers. Any other object is its class and its attributes.
    """
    return _Description(trained).of(value, _DEPTH)


def digest(value: Any) -> str:
    """SHA-256 in hex over the description of `value`."""
    return hashlib.sha256(canonical_json(describe(value))).hexdigest()


def is_off(value: Any, default: Any) -> bool:
    """Whether an option is not set, so that a later version of a library can add it without changing a fingerprint."""
    return value is None or (value is False and default in (False, None))


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """XXH3 (128 bits, in hex) over the names, shapes, types and bytes of `tensors`; the order does not matter.

    Tensors on a GPU are copied to the CPU part by part, so the memory on top is at most 64 MiB.
    """
    found = xxhash.xxh3_128()
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.to_local() if hasattr(tensor, "to_local") else getattr(tensor, "ds_tensor", tensor)
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if place not in seen:
            seen[place] = _bytes_digest(tensor)
        found.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{seen[place]}".encode())
    return found.hexdigest()


def module_numbers(model: torch.nn.Module) -> dict[str, Any]:
    """The numbers that are attributes of each module and not 0: probabilities of dropout, scales of adapters."""
    numbers = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, float) and value:
                numbers[f"{name}.{key}"] = _number(value)
            elif isinstance(value, Mapping):
                of_adapters = {item: n for item, n in value.items() if type(n) in (int, float)}
                numbers |= {f"{name}.{key}.{item}": _number(number) for item, number in of_adapters.items() if number}
    return numbers


def _bytes_digest(tensor: torch.Tensor) -> str:
    if tensor.device.type == "meta":
        return "meta"
    found = xxhash.xxh3_128()
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    for start in range(0, flat.numel(), _PART):
        found.update(flat[start : start + _PART].cpu().numpy().data)
    return found.hexdigest()


class _Description:
    def __init__(self, trained: torch.nn.Module | None) -> None:
        self._trained = set() if trained is None else set(map(id, trained.modules()))
        # The ids of the objects on the path to the value, and the functions that are described already.
        self._open: set[int] = set()
        self._functions: set[Any] = set()

    def of(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, (bool, str)):
            return str(value.value) if isinstance(value, Enum) else value
        if isinstance(value, Enum):
            return self.of(value.value, depth)
        if isinstance(value, (int, float)):
            return _number(value)
        if isinstance(value, (PurePath, torch.dtype, torch.device)):
            return str(value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return {"bytes": hashlib.sha256(value).hexdigest()}
        if isinstance(value, _FUNCTIONS):
            return self._code(value, depth)
        if isinstance(value, (torch.Tensor, np.ndarray, np.generic)) or hasattr(type(value), "__array_interface__"):
            return self._array(value)
        if id(value) in self._open or depth == 0:
            return qualified_name(type(value))
        self._open.add(id(value))
        try:
            return self._container(value, depth - 1)
        finally:
            self._open.discard(id(value))

    def _container(self, value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            return {str(self.of(key, depth)): self.of(item, depth) for key, item in value.items()}
        if isinstance(value, (set, frozenset)):
            return sorted((self.of(item, depth) for item in value), key=canonical_json)
        if isinstance(value, Sequence):
            return [self.of(item, depth) for item in value]
        if isinstance(value, functools.partial):
            return {"function": self.of(value.func, depth), "arguments": self.of([value.args, value.keywords], depth)}
        if hasattr(value, "get_vocab"):
            return self._tokenizer(value, depth)
        return self._object(value, depth)

    def _object(self, value: Any, depth: int) -> Any:
        kind = self.of(type(value), depth)
        if isinstance(value, ModuleType):
            return value.__name__
        if isinstance(value, torch.nn.Module):
            if id(value) in self._trained:
                return kind
            tensors = {**dict(value.named_parameters()), **dict(value.named_buffers())}
            return {"class": kind, "weights": tensors_digest(tensors), "numbers": module_numbers(value)}
        if isinstance(value, torch.Generator):
            return {"class": kind, "seed": value.initial_seed()}
        defaults = {}
        if dataclasses.is_dataclass(value):
            defaults = {field.name: field.default for field in dataclasses.fields(value)}
        attributes = {
            name: self.of(item, depth)
            for name, item in getattr(value, "__dict__", {}).items()
            if not is_off(item, defaults.get(name))
        }
        return {"class": kind, "attributes": attributes} if attributes else kind

    def _tokenizer(self, tokenizer: Any, depth: int) -> Any:
        names = ("padding_side", "truncation_side", "special_tokens_map", "chat_template", "model_input_names")
        known = {name: self.of(getattr(tokenizer, name, None), depth) for name in names}
        vocabulary = hashlib.sha256(canonical_json(tokenizer.get_vocab())).hexdigest()
        return {"class": qualified_name(type(tokenizer)), "vocabulary": vocabulary} | known

    def _array(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            array = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
        else:
            array = np.asarray(value)
        if array.dtype == object or array.size <= _SMALL:
            return self.of(array.tolist(), 2)
        known = xxhash.xxh3_128(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()
        return {"shape": list(array.shape), "type": str(array.dtype), "digest": known}

    def _code(self, value: Any, depth: int) -> Any:
        """A function, method or class: its name, and for the user's own what its code does."""
        name = qualified_name(value)
        if not has_own_code(value) or value in self._functions:
            return name
        self._functions.add(value)
        functions = list(functions_of(value))
        uses: dict[str, Any] = {}
        for function in functions:
            closure = inspect.getclosurevars(function)
            defaults = (function.__defaults__, function.__kwdefaults__)
            for key, item in {**closure.nonlocals, **closure.globals, f"{function.__qualname__}()": defaults}.items():
                if _can_decide(item):
                    uses[key] = self.of(item, depth - 1) if depth > 1 else None
                elif isinstance(item, ModuleType) and is_own(item):
                    names = sorted(names_in(function) & vars(item).keys())
                    uses |= {f"{key}.{n}": self.of(vars(item)[n], depth - 1) for n in names if depth > 1}
        code = hashlib.sha256("".join(map(bytecode_digest, functions)).encode()).hexdigest()
        if isinstance(value, type):
            plain = {k: v for k, v in vars(value).items() if not k.startswith("__") and _is_constant(v)}
            uses |= {f"class.{key}": self.of(item, depth - 1) for key, item in plain.items() if depth > 1}
        # Without its module, which is another one in a script that is run and in one that is imported.
        return {"name": name.rpartition(".")[2], "code": code} | ({"uses": uses} if uses else {})


def _can_decide(value: Any) -> bool:
    """Whether a value that own code uses says what the code does: own functions and classes, and constants."""
    if isinstance(value, _FUNCTIONS):
        return has_own_code(value)
    return _is_constant(value) or isinstance(value, (functools.partial, torch.nn.Module))


def _is_constant(value: Any) -> bool:
    if isinstance(value, (list, tuple, set, frozenset)):
        return len(value) <= _SMALL and all(map(_is_constant, value))
    if isinstance(value, Mapping):
        return len(value) <= _SMALL and all(map(_is_constant, value.values()))
    return isinstance(value, (bool, int, float, str, Enum, torch.Tensor, np.ndarray, torch.Generator))


def _number(value: float) -> Any:
    if isinstance(value, int):
        return int(value)
    if value != value or value in (float("inf"), float("-inf")):
        return repr(float(value))
    return int(value) if value.is_integer() else float(value)
