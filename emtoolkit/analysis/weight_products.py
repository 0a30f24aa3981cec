"""Inner products of weight changes in float64, one module at a time, without forming any product BA.

⟨B₁A₁, B₂A₂⟩ = Σ_ij (B₁ᵀB₂)_ij (A₁A₂ᵀ)_ij, times both scales. In float32 the distance of two adapters whose BA differ by
5e-4 of their norm is wrong by a quarter; in float64 by 1e-8. A module takes the memory of its matrices in the dtype of
the files, for all checkpoints, and 160 MB besides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emtoolkit.analysis.weight_files import LowRankPair, WholeTensor, read_rows

Floats = NDArray[np.float64]

_BLOCK_BYTES = 80_000_000
# Singular values of BA below this share of the largest are rounding, and no direction of the update.
_RANK_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Overlap:
    """‖Q₁ᵀQ₂‖²_F/r of two subspaces, 1 where one contains the other, and what two random subspaces would have.

    For ranks r₁ and r₂ the overlap is divided by the smaller, and the level of chance is the larger divided by the
    dimension. NaN where an update is zero.
    """

    outputs: float
    inputs: float
    outputs_chance: float
    inputs_chance: float

    @classmethod
    def none(cls) -> "Overlap":
        """The overlap with an update that is zero."""
        return cls(*[float("nan")] * 4)


@dataclass(frozen=True, slots=True)
class ModuleProducts:
    """One module over all checkpoints: the Gram matrix of scale · BA, the norms of A and B, overlaps with the last."""

    gram: Floats
    norms_a: Floats
    norms_b: Floats
    overlaps: tuple[Overlap, ...]


def low_rank_products(pairs: Sequence[LowRankPair]) -> ModuleProducts:
    """The products of one module, whose matrices at each checkpoint are `pairs`."""
    read = [pair.read() for pair in pairs]
    a_rows, b_rows = [a for a, _ in read], [b.T.contiguous() for _, b in read]
    scales = np.array([pair.scale for pair in pairs])
    last = _subspaces(a_rows[-1], b_rows[-1])
    overlaps = tuple(_overlap(_subspaces(a, b), last) for a, b in zip(a_rows, b_rows, strict=True))
    return ModuleProducts(
        gram=_low_rank_gram(a_rows, b_rows) * np.outer(scales, scales),
        norms_a=np.array([_norm(a) for a in a_rows]),
        norms_b=np.array([_norm(b) for b in b_rows]),
        overlaps=overlaps,
    )


def whole_gram(tensors: Sequence[WholeTensor]) -> Floats:
    """The Gram matrix of the differences of one tensor from its first value, of shape [T, T]."""
    count, shape = len(tensors), tensors[0].shape
    rows = shape[0] if shape else 1
    row_bytes = 8 * math.prod(shape[1:]) * count
    at_once = max(1, _BLOCK_BYTES // max(row_bytes, 1))
    gram = torch.zeros(count, count, dtype=torch.float64)
    for start in range(0, rows, at_once):
        values = torch.stack([read_rows(t, start, start + at_once).to(torch.float64) for t in tensors])
        values -= values[0].clone()
        gram += values @ values.T
    return np.asarray(gram.numpy(), dtype=np.float64)


def _low_rank_gram(a_rows: Sequence[Tensor], b_rows: Sequence[Tensor]) -> Floats:
    """⟨B_sA_s, B_tA_t⟩ for A of shape [r, inputs] and Bᵀ of shape [r, outputs]; the ranks may differ."""
    count, widest = len(a_rows), max(a_rows[0].shape[1], b_rows[0].shape[1])
    at_once = max(1, _BLOCK_BYTES // (8 * widest * max(len(a) for a in a_rows)))
    blocks = [range(start, min(start + at_once, count)) for start in range(0, count, at_once)]
    gram = np.zeros((count, count))
    for i, left in enumerate(blocks):
        a, b = _block(a_rows, left), _block(b_rows, left)
        for right in blocks[: i + 1]:
            same = right is left
            other_a, other_b = (a, b) if same else (_block(a_rows, right), _block(b_rows, right))
            products = ((b @ other_b.T) * (a @ other_a.T)).numpy()
            sums = np.add.reduceat(products, _starts(a_rows, left), axis=0)
            sums = np.add.reduceat(sums, _starts(a_rows, right), axis=1)
            gram[left.start : left.stop, right.start : right.stop] = sums
            gram[right.start : right.stop, left.start : left.stop] = sums.T
    return gram


def _block(rows: Sequence[Tensor], which: range) -> Tensor:
    return torch.cat([rows[i] for i in which]).to(torch.float64)


def _starts(rows: Sequence[Tensor], which: range) -> list[int]:
    """The first row of each checkpoint in a block."""
    starts, total = [], 0
    for i in which:
        starts.append(total)
        total += len(rows[i])
    return starts


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))


def _subspaces(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of the column space and of the row space of BA, of shapes [outputs, k] and [inputs, k]."""
    q_b, r_b = torch.linalg.qr(b.T.to(torch.float64))
    q_a, r_a = torch.linalg.qr(a.T.to(torch.float64))
    u, values, v = torch.linalg.svd(r_b @ r_a.T)
    kept = int((values > _RANK_TOLERANCE * values[0]).sum()) if len(values) and values[0] > 0 else 0
    return q_b @ u[:, :kept], q_a @ v.T[:, :kept]


def _overlap(subspaces: tuple[Tensor, Tensor], last: tuple[Tensor, Tensor]) -> Overlap:
    small, large = sorted((subspaces[0].shape[1], last[0].shape[1]))
    if not small:
        return Overlap.none()
    shared = [float(torch.linalg.vector_norm(p.T @ q) ** 2) / small for p, q in zip(subspaces, last, strict=True)]
    return Overlap(*shared, *(large / q.shape[0] for q in last))
