"""From a trajectory to a table: how far and in which direction the weights move from checkpoint to checkpoint.

The point of a checkpoint is the vector of scale · BA of every LoRA module and of every whole tensor minus its first
value. A and B alone depend on a gauge: (BM)(M⁻¹A) is the same model for any invertible M. The adapter of a persona,
merged or stacked, is the same at every step and is not part of the path.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emtoolkit.analysis.path_geometry import (
    Floats,
    LocalCosine,
    distance,
    local_cosines,
    norms,
    principal_components,
    usual_window,
)
from emtoolkit.analysis.weight_files import CheckpointWeights, check_same_modules
from emtoolkit.analysis.weight_products import Overlap, low_rank_products, whole_gram
from emtoolkit.checkpoints.layout import TRAINER_STATE
from emtoolkit.checkpoints.listing import damaged_checkpoints
from emtoolkit.errors import CheckpointError, UserError
from emtoolkit.json_files import read_json
from emtoolkit.notebook_tables import AsTable
from emtoolkit.progress import Progress, silent
from emtoolkit.schedules.steps import elided
from emtoolkit.trajectory import Checkpoint, Trajectory


@dataclass(frozen=True, slots=True)
class ModuleDynamics:
    """One module at one step: the norm of its change, and for LoRA those of A and B (gauge-dependent) and the overlap.

    Norms of A and B are NaN, and the overlap is None, for a whole tensor.
    """

    module: str
    norm: float
    norm_a: float
    norm_b: float
    overlap: Overlap | None


@dataclass(frozen=True, slots=True)
class StepDynamics:
    """The path at one checkpoint.

    `norm` is the norm of scale · BA, together with the change since the first checkpoint of whole tensors; `norm_a` and
    `norm_b` depend on the gauge and are NaN for full checkpoints. `from_first` and `distance` are the distances to the
    first and to the previous checkpoint, `per_step` the latter divided by the steps between them; NaN at the first.
    `cosines` has one entry for each window. `overlap` is that of the subspace of BA with the last checkpoint's, the
    mean over modules. `grad_norm` is what the run logged at this step, NaN where it logged none.
    """

    step: int
    norm: float
    norm_a: float
    norm_b: float
    from_first: float
    distance: float
    per_step: float
    cosines: Mapping[int, LocalCosine]
    coordinates: tuple[float, ...]
    overlap: Overlap
    grad_norm: float
    modules: tuple[ModuleDynamics, ...]

    def row(self) -> dict[str, Any]:
        """The values in the columns of the CSV file, without those of the modules."""
        row: dict[str, Any] = {
            "step": self.step,
            "norm": self.norm,
            "norm_a": self.norm_a,
            "norm_b": self.norm_b,
            "from_first": self.from_first,
            "distance": self.distance,
            "per_step": self.per_step,
        }
        for window, cosine in self.cosines.items():
            row[f"cosine_{window}"] = cosine.value
            row |= {f"before_{window}": cosine.before, f"after_{window}": cosine.after}
        row |= {f"pc{i}": value for i, value in enumerate(self.coordinates, start=1)}
        overlap = self.overlap
        row |= {"overlap": overlap.outputs, "overlap_chance": overlap.outputs_chance}
        row |= {"overlap_inputs": overlap.inputs, "overlap_inputs_chance": overlap.inputs_chance}
        return row | {"grad_norm": self.grad_norm}


@dataclass(frozen=True, slots=True)
class Dynamics(AsTable):
    """The path of a trajectory; `explained` is the share of the variance on each principal component."""

    trajectory: str
    steps: tuple[StepDynamics, ...]
    windows: tuple[int, ...]
    explained: tuple[float, ...]
    notes: tuple[str, ...]

    def _title(self) -> str:
        return f"{self.trajectory}: the path of the weights"

    def _rows(self) -> list[dict[str, Any]]:
        return [each.row() for each in self.steps]


@dataclass(slots=True)
class _Sums:
    """Sums over the modules that have been read."""

    gram: Floats
    squares_a: Floats
    squares_b: Floats
    modules: list[list[ModuleDynamics]]


def trajectory_dynamics(
    trajectory: Trajectory, windows: Sequence[int] = (), steps: str | None = None, *, progress: Progress = silent
) -> Dynamics:
    """The dynamics of the checkpoints that the schedule `steps` selects, all if None.

    `windows` are those of the local cosines, in steps; without them the window is the commonest distance between two
    checkpoints. A damaged checkpoint is left out and named in the notes.

    Raises:
        UserError: a window is below 1, or `steps` selects nothing.
        CheckpointError: no checkpoint can be read, or the checkpoints do not train the same modules.
    """
    for window in windows:
        if window < 1:
            raise UserError(f"--window {window}: a window has at least one step")
    notes = damaged_checkpoints(trajectory.name)
    chosen = tuple(trajectory) if steps is None else trajectory.select(steps)
    checkpoints, weights = _readable(trajectory.name, chosen, notes)
    sums = _sum_modules(weights, progress)
    at = [each.step for each in checkpoints]
    usual = usual_window(at)
    used = tuple(dict.fromkeys(windows)) or (() if usual is None else (usual,))
    cosines = {window: local_cosines(at, sums.gram, window) for window in used}
    notes += _remarks(weights, cosines, at)
    components = principal_components(sums.gram)
    found = []
    for i, checkpoint in enumerate(checkpoints):
        gap = distance(sums.gram, i - 1, i) if i else float("nan")
        found.append(
            StepDynamics(
                step=checkpoint.step,
                norm=float(norms(sums.gram)[i]),
                norm_a=_root(sums.squares_a[i], weights),
                norm_b=_root(sums.squares_b[i], weights),
                from_first=distance(sums.gram, 0, i),
                distance=gap,
                per_step=gap / (checkpoint.step - at[i - 1]) if i else float("nan"),
                cosines={window: values[i] for window, values in cosines.items()},
                coordinates=tuple(map(float, components.coordinates[i])),
                overlap=_mean_overlap(sums.modules[i]),
                grad_norm=_grad_norm(checkpoint),
                modules=tuple(sums.modules[i]),
            )
        )
    return Dynamics(trajectory.name, tuple(found), used, components.explained, tuple(notes))


def _readable(
    name: str, chosen: Sequence[Checkpoint], notes: list[str]
) -> tuple[list[Checkpoint], list[CheckpointWeights]]:
    checkpoints, weights = [], []
    for checkpoint in chosen:
        try:
            found = CheckpointWeights.find(checkpoint.step, checkpoint.path)
        except CheckpointError as error:
            notes.append(f"step {checkpoint.step} is skipped: {error}")
            continue
        checkpoints.append(checkpoint)
        weights.append(found)
    foreign = [each.step for each in checkpoints if each.manifest is None]
    if foreign:
        notes.append(f"{name}: another tool saved steps {elided(foreign, 60)}, so their files are not verified")
    if not weights:
        raise CheckpointError(f"{name}: no checkpoint can be read; {notes[0]}")
    check_same_modules(weights)
    return checkpoints, weights


def _sum_modules(weights: Sequence[CheckpointWeights], progress: Progress) -> _Sums:
    count, first = len(weights), weights[0]
    sums = _Sums(np.zeros((count, count)), np.zeros(count), np.zeros(count), [[] for _ in weights])
    total = len(first.pairs) + len(first.tensors)
    for done, module in enumerate(sorted(first.pairs), start=1):
        products = low_rank_products([each.pairs[module] for each in weights])
        sums.gram += products.gram
        sums.squares_a += products.norms_a**2
        sums.squares_b += products.norms_b**2
        values = zip(norms(products.gram), products.norms_a, products.norms_b, products.overlaps, strict=True)
        for of_step, (norm, norm_a, norm_b, overlap) in zip(sums.modules, values, strict=True):
            of_step.append(ModuleDynamics(module, float(norm), float(norm_a), float(norm_b), overlap))
        progress("comparing weights", done, total)
    nan = float("nan")
    for done, name in enumerate(sorted(first.tensors), start=len(first.pairs) + 1):
        gram = whole_gram([each.tensors[name] for each in weights])
        sums.gram += gram
        for of_step, norm in zip(sums.modules, norms(gram), strict=True):
            of_step.append(ModuleDynamics(name, float(norm), nan, nan, None))
        progress("comparing weights", done, total)
    return sums


def _remarks(
    weights: Sequence[CheckpointWeights], cosines: Mapping[int, Sequence[LocalCosine]], steps: Sequence[int]
) -> list[str]:
    notes = []
    if len(steps) == 1:
        notes.append(f"step {steps[0]} is the only checkpoint; distances and turns need more")
    if not all(each.starts_at_zero for each in weights):
        notes.append(
            "the initialization took the first BA out of the base weights, so that the change of the model is the "
            "distance from the start, not the norm of BA"
        )
    if weights[0].tensors and steps[0] != 0:
        notes.append(f"the change of whole tensors is counted from step {steps[0]}, the first checkpoint")
    for window, values in cosines.items():
        if len(steps) > 2 and all(np.isnan(each.value) for each in values):
            usual = usual_window(steps)
            hint = "" if window == usual else f"; the commonest distance here is {usual} steps"
            notes.append(
                f"window {window}: no step has a checkpoint within 20 % of {window} steps on both sides, with equal "
                f"sides within 20 %{hint}"
            )
    return notes


def _root(squares: Any, weights: Sequence[CheckpointWeights]) -> float:
    return float(np.sqrt(squares)) if weights[0].pairs else float("nan")


def _mean_overlap(modules: Sequence[ModuleDynamics]) -> Overlap:
    found = [each.overlap for each in modules if each.overlap is not None and not np.isnan(each.overlap.outputs)]
    if not found:
        return Overlap.none()
    columns = ("outputs", "inputs", "outputs_chance", "inputs_chance")
    return Overlap(*(float(np.mean([getattr(each, column) for each in found])) for column in columns))


def _grad_norm(checkpoint: Checkpoint) -> float:
    """The gradient norm before clipping that the Trainer logged at the step itself."""
    value = checkpoint.metadata.get("grad_norm")
    if value is None:
        try:
            history = read_json(checkpoint.path / TRAINER_STATE, finite=False)["log_history"]
            value = next((each["grad_norm"] for each in history if each.get("step") == checkpoint.step), None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            value = None
    try:
        return float("nan") if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def path_lengths(reference: str, steps: Sequence[int], *, progress: Progress = silent) -> list[float]:
    """The length of the way of the weights up to each of `steps`: the sum of the distances between the checkpoints.

    Raises:
        CheckpointError: `reference` is no directory, a checkpoint of `steps` cannot be read, or a weight is not finite.
    """
    if not Path(reference).is_dir():
        raise CheckpointError(
            f"{reference}: the way of the weights is measured on this machine; pass --along steps, or download the "
            "checkpoints and prune the directory"
        )
    found = trajectory_dynamics(Trajectory.open(reference), progress=progress)
    lengths = np.cumsum([0.0, *(step.distance for step in found.steps[1:])])
    at = {step.step: float(length) for step, length in zip(found.steps, lengths, strict=True)}
    if missing := [step for step in steps if not np.isfinite(at.get(step, np.nan))]:
        raise CheckpointError(
            f"{reference}: the weights of steps {elided(missing, 60)} cannot be compared; pass --along steps"
        )
    return [at[step] for step in steps]
