"""How far the trained weights are from other weights of the same training, without forming any product BA.

BA - B₀A₀ = (B-B₀)A + B₀(A-A₀), and ⟨PQ, RS⟩ = Σ_ij (PᵀR)_ij (QSᵀ)_ij. The differences are formed first, so that nothing
cancels: in float32 the distance is right to 1e-6 of itself, and takes half the time of float64.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emtoolkit.checkpoints.lora_product import MATRIX_OF_END, PREFIX, option_against_product, scale_of
from emtoolkit.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class _Pair:
    """The names of A, of shape [r, inputs], and of B, of shape [outputs, r], and the scale of their product."""

    a: str
    b: str
    scale: float


@dataclass(frozen=True, slots=True)
class TrainedWeights:
    """Which tensors of a checkpoint are trained: pairs of LoRA, whose products count, and whole tensors.

    `why_no_product` says why the matrices of an adapter count as they are; None if products count or there is none.
    """

    pairs: tuple[_Pair, ...]
    whole: tuple[str, ...]
    why_no_product: str | None = None

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> "TrainedWeights":
        """The weights among the trained `tensors`; `config` is the adapter's, None for a model that has none.

        Other adapters than LoRA, and variants whose change is another than scale · BA, count tensor by tensor.
        """
        names = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
        if config is None:
            return cls((), tuple(names))
        method = config.get("peft_type")
        if method != "LORA" or option_against_product(config):
            why = option_against_product(config) if method == "LORA" else None
            return cls((), tuple(names), f"the adapter is {method}" + (f" with {why}" if why else ""))
        modules: dict[str, dict[str, str]] = {}
        for name in names:
            if (end := next((end for end in MATRIX_OF_END if name.endswith(end)), None)) is not None:
                modules.setdefault(name.removesuffix(end).removeprefix(PREFIX), {})[MATRIX_OF_END[end]] = name
        complete = {module: found for module, found in modules.items() if found.keys() == {"a", "b"}}
        pairs = tuple(
            _Pair(found["a"], found["b"], scale_of(module, tensors[found["a"]].shape[0], config))
            for module, found in complete.items()
        )
        paired = {name for pair in pairs for name in (pair.a, pair.b)}
        return cls(pairs, tuple(name for name in names if name not in paired))

    def copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of the trained `tensors` in CPU memory; a pair whose product is zero is left out."""
        names = [*self.whole]
        for pair in self.pairs:
            if bool(tensors[pair.b].any()) and bool(tensors[pair.a].any()):
                names += [pair.a, pair.b]
        return {name: tensors[name].detach().to("cpu", copy=True) for name in names}

    def distance(self, now: Mapping[str, Tensor], then: Mapping[str, Tensor]) -> float:
        """‖Δ‖ between the weights `now` and the `copied` weights `then`; NaN or infinity where a weight is no number.

        Raises:
            CheckpointError: a tensor has another shape now.
        """
        return self.distances(now, then, then)[0]

    def distances(
        self, now: Mapping[str, Tensor], last: Mapping[str, Tensor], start: Mapping[str, Tensor]
    ) -> tuple[float, float]:
        """The distances of the weights `now` from the `copied` weights `last` and `start`, as `distance`.

        Raises:
            CheckpointError: a tensor has another shape now.
        """
        moved = from_start = 0.0
        for name in self.whole:
            value = _as_float(now[name])
            moved += _squared(value - _as_float(_same_shape(now, last, name)))
            if last is not start:
                from_start += _squared(value - _as_float(_same_shape(now, start, name)))
        for pair in self.pairs:
            difference, product = _squares_of_pair(pair, now, last)
            moved += pair.scale**2 * difference
            if last is not start:
                from_start += pair.scale**2 * (_squares_of_pair(pair, now, start)[0] if pair.a in start else product)
        return _root(moved), _root(moved if last is start else from_start)


def _squares_of_pair(pair: _Pair, now: Mapping[str, Tensor], then: Mapping[str, Tensor]) -> tuple[float, float]:
    """‖BA - B₀A₀‖² and ‖BA‖² without the scale, from products of shape [r, r] alone."""
    a, b = _as_float(now[pair.a]).flatten(1), _as_float(now[pair.b]).flatten(1)
    of_a = a @ a.T
    if pair.a not in then:
        product = _inner(b.T @ b, of_a)
        return product, product
    old_a = _as_float(_same_shape(now, then, pair.a)).flatten(1)
    old_b = _as_float(_same_shape(now, then, pair.b)).flatten(1)
    change_a, change_b = a - old_a, b - old_b
    of_change_b, cross_b, of_old_b = change_b.T @ change_b, change_b.T @ old_b, old_b.T @ old_b
    difference = _inner(of_change_b, of_a) + 2 * _inner(cross_b, a @ change_a.T)
    difference += _inner(of_old_b, change_a @ change_a.T)
    return difference, _inner(of_change_b + cross_b + cross_b.T + of_old_b, of_a)


def _inner(left: Tensor, right: Tensor) -> float:
    return float((left * right).sum(dtype=torch.float64))


def _root(squared: float) -> float:
    """The square root; rounding may make a square that is zero a little less."""
    return math.sqrt(max(squared, 0.0)) if not math.isnan(squared) else math.nan


def _squared(difference: Tensor) -> float:
    return float(torch.linalg.vector_norm(difference, dtype=torch.float64)) ** 2


def _as_float(tensor: Tensor) -> Tensor:
    """The values for the arithmetic: float32, or float64 where the weights are."""
    return tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()


def _same_shape(now: Mapping[str, Tensor], then: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in then or then[name].shape != now[name].shape:
        before = list(then[name].shape) if name in then else None
        raise CheckpointError(
            f"'{name}' has the shape {list(now[name].shape)} and had {before}, so its way cannot be measured; use a "
            "schedule of known steps, such as every:25"
        )
    return then[name]


def trained_only(tensors: Mapping[str, Tensor], parameters: Iterable[Tensor]) -> dict[str, Tensor]:
    """Those of the `tensors` of a checkpoint that a training changes, each memory once; all if none is a parameter.

    `parameters` are the trained parameters. What PEFT computes from them, as an encoded prompt, is none of them. A
    matrix of a LoRA pair that is frozen belongs to the product.
    """
    places = {parameter.data_ptr() for parameter in parameters}
    found: dict[int, str] = {}
    for name, tensor in tensors.items():
        if tensor.data_ptr() in places or name.endswith(tuple(MATRIX_OF_END)):
            found.setdefault(tensor.data_ptr(), name)
    return {name: tensors[name] for name in found.values()} or dict(tensors)
