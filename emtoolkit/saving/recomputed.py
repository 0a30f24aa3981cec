"""A step that a resumed run computes again, beside the checkpoint of that step that exists: the weights decide.

On one machine a training gives the same bytes again, unless a kernel is not deterministic, as some are on a GPU. A
difference is measured as an absolute number, and as a share of the way that training has gone: noise of kernels is a
small share of it, and rows in another order are a large one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from emtoolkit.checkpoints.layout import step_of
from emtoolkit.checkpoints.manifest import Manifest
from emtoolkit.checkpoints.publications import Difference
from emtoolkit.errors import CheckpointError

# A larger share of the way is named as more than the noise of kernels.
LARGEST_NOISE = 0.05
# Elements that are compared at a time, so that a large embedding needs little memory.
_SLICE = 2**24


@dataclass(frozen=True, slots=True)
class Recomputed:
    """How the recomputed step differs from the checkpoint: `weights` is None if every weight is equal.

    `other_files` are the files without weights that differ, such as a `config.json` that the first forward pass
    changes.
    """

    weights: Difference | None
    other_files: tuple[str, ...] = ()


def compare_recomputed(path: Path, manifest: Manifest, again: Path, manifest_again: Manifest) -> Recomputed:
    """Compare the checkpoint `path` with the same step computed again in `again`; both are intact.

    Raises:
        CheckpointError: they belong to two trajectories, or hold tensors of other names, shapes or types.
    """
    step = manifest.step
    if (manifest.fingerprint, manifest.total_steps) != (manifest_again.fingerprint, manifest_again.total_steps):
        raise CheckpointError(f"{path}: belongs to another trajectory; choose another output directory")
    changed = {name for name, digest in manifest_again.files.items() if manifest.files.get(name) != digest}
    changed |= manifest.files.keys() - manifest_again.files.keys()
    weights = None
    if any(name.endswith(".safetensors") for name in changed):
        before, after = _Weights(path, manifest), _Weights(again, manifest_again)
        if before.layout() != after.layout():
            raise CheckpointError(
                f"{path}: holds other tensors than this run trains at step {step}; choose another output directory"
            )
        first = _first_checkpoint(path.parent, step)
        comparable = first is not None and first.layout() == before.layout()
        weights = _difference(before, after, first if comparable else None)
    return Recomputed(weights, tuple(sorted(name for name in changed if not name.endswith(".safetensors"))))


class _Weights:
    """The tensors of a checkpoint, read one at a time."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._file_of: dict[str, Path] = {}
        for name in sorted(manifest.files):
            if name.endswith(".safetensors"):
                with safe_open(path / name, "pt") as file:
                    self._file_of |= dict.fromkeys(file.keys(), path / name)

    def layout(self) -> dict[str, tuple[list[int], str]]:
        """The shape and the type of each tensor, by name."""
        found = {}
        for name, path in self._file_of.items():
            with safe_open(path, "pt") as file:
                tensor = file.get_slice(name)
                found[name] = (list(tensor.get_shape()), str(tensor.get_dtype()))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._file_of[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor.flatten()


def _difference(before: _Weights, after: _Weights, first: _Weights | None) -> Difference | None:
    """The largest absolute difference of a weight and, if `first` is given, the share of the way from `first`."""
    largest, place, squares, way = 0.0, "", 0.0, 0.0
    for name in before:
        kept, computed = before[name], after[name]
        start = None if first is None else first[name]
        for at in range(0, kept.numel(), _SLICE):
            part = slice(at, at + _SLICE)
            difference = _distance(computed[part], kept[part])
            if (here := float(difference.max())) > largest:
                largest, place = here, name
            squares += float(difference.square().sum())
            if start is not None:
                way += float(_distance(kept[part], start[part]).square().sum())
    if not place:
        return None
    return Difference(largest, place, math.sqrt(squares / way) if way > 0 and math.isfinite(way) else None)


def _distance(left: Tensor, right: Tensor) -> Tensor:
    """The absolute difference of each pair of elements; infinite where only one of them is a number."""
    left, right = left.double(), right.double()
    same = (left == right) | (left.isnan() & right.isnan())
    return (left - right).abs().masked_fill(same, 0.0).nan_to_num(math.inf, math.inf)


def _first_checkpoint(directory: Path, before: int) -> _Weights | None:
    """The weights of the first intact checkpoint in `directory` that is earlier than step `before`, if any."""
    named = sorted((step, path) for path in directory.iterdir() if (step := step_of(path.name)) is not None)
    for step, path in named:
        if step >= before:
            return None
        try:
            manifest = Manifest.read(path)
        except CheckpointError:
            continue
        if not manifest.problems(path, rehash=False):
            return _Weights(path, manifest)
    return None
