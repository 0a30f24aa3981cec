"""The checkpoints of one training path in the order of their steps.

trajectory = Trajectory.open("outputs/goodness-medical")
for checkpoint in trajectory.between(0, 150):
    model = checkpoint.load_adapter(base)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.manifest import MANIFEST, Manifest
from emtoolkit.errors import CheckpointError


@dataclass(frozen=True)
class Checkpoint:
    """One step of a trajectory. `final` if training ended there."""

    step: int
    final: bool
    directory: Path = field(repr=False)

    @cached_property
    def path(self) -> Path:
        """The directory with its files, every one of them hashed and compared with the manifest at the first use.

        Raises:
            CheckpointError: a file is not what the manifest says, by its name.
        """
        if self.manifest is not None and (problems := self.manifest.problems(self.directory, rehash=True)):
            raise CheckpointError(problems[0])
        return self.directory

    @cached_property
    def manifest(self) -> Manifest | None:
        """What emtoolkit wrote about it; None for another tool's checkpoint.

        Raises:
            CheckpointError: there is a manifest that cannot be read.
        """
        return Manifest.read(self.directory) if (self.directory / MANIFEST).exists() else None

    def load_adapter(self, model: Any) -> Any:
        """`model`, which this changes, with the LoRA adapter of this step: a `PeftModel` for inference.

        Raises:
            CheckpointError: a file is not what the manifest says, or this is not the checkpoint of an adapter.
        """
        from peft import PeftModel

        if not (self.path / "adapter_config.json").is_file():
            raise CheckpointError(f"{self.path}: it holds all weights and no adapter; load it with from_pretrained")
        return PeftModel.from_pretrained(model, self.path)


class Trajectory(Sequence[Checkpoint]):
    """Checkpoints in the order of their steps; at least one."""

    def __init__(self, name: str, checkpoints: Sequence[Checkpoint]) -> None:
        if not checkpoints:
            raise CheckpointError(f"{name}: it holds no checkpoint")
        self.name = name
        self._checkpoints = tuple(sorted(checkpoints, key=lambda checkpoint: checkpoint.step))

    @classmethod
    def open(cls, directory: str | Path) -> "Trajectory":
        """The complete checkpoints in a run's directory, or in any with `checkpoint-*`, as of a stock Trainer.

        Raises:
            CheckpointError: there is no such directory, or no complete checkpoint in it.
        """
        found = [info for info in list_checkpoints(Path(directory)) if info.complete]
        return cls(str(directory), [Checkpoint(info.step, info.final, info.path) for info in found])

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps, ascending."""
        return tuple(checkpoint.step for checkpoint in self._checkpoints)

    @property
    def final(self) -> Checkpoint:
        """The checkpoint at which training ended.

        Raises:
            CheckpointError: training has not ended, as far as the checkpoints tell.
        """
        if not self._checkpoints[-1].final:
            raise CheckpointError(f"{self.name}: training has not ended; the newest step is {self.steps[-1]}")
        return self._checkpoints[-1]

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of exactly `step`.

        Raises:
            CheckpointError: there is none; the nearest one is named.
        """
        nearest = self.nearest(step)
        if nearest.step != step:
            raise CheckpointError(f"{self.name}: there is no checkpoint at step {step}; the nearest is {nearest.step}")
        return nearest

    def nearest(self, step: int) -> Checkpoint:
        """The checkpoint whose step is closest to `step`, the earlier one of two."""
        return min(self._checkpoints, key=lambda checkpoint: (abs(checkpoint.step - step), checkpoint.step))

    def between(self, first: int, last: int) -> tuple[Checkpoint, ...]:
        """The checkpoints from step `first` to step `last`, both included."""
        return tuple(checkpoint for checkpoint in self._checkpoints if first <= checkpoint.step <= last)

    def __len__(self) -> int:
        return len(self._checkpoints)

    def __getitem__(self, index: Any) -> Any:
        return self._checkpoints[index]

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self._checkpoints)
