"""The checkpoints of one training path in the order of their steps, on this machine or on W&B.

trajectory = Trajectory.open("outputs/goodness-medical")  # or "entity/project/collection"
model = base
for checkpoint in trajectory.between(0, 150):
    model = checkpoint.load_adapter(model)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emtoolkit.checkpoints.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.manifest import MANIFEST, Manifest
from emtoolkit.checkpoints.publications import Ledger
from emtoolkit.checkpoints.records import PersonaRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.paths import cache_dir
from emtoolkit.progress import Progress, silent
from emtoolkit.schedules.selection import nearest_step, select_steps

if TYPE_CHECKING:
    from emtoolkit.artifacts.collection import Collection
    from emtoolkit.artifacts.download import Downloaded


@dataclass(frozen=True)
class Checkpoint:
    """One step of a trajectory. `final` if training ended there.

    `metadata` is what its run told W&B of it: loss, schedule, seconds; empty where nothing was told. One on W&B is
    downloaded at the first use of anything else.
    """

    step: int
    final: bool
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    _directory: Path = field(kw_only=True, repr=False)
    # Brings it into its directory if it is not there; whether that has just compared every file with the manifest.
    _fetch: Callable[[], bool] = field(default=lambda: False, kw_only=True, repr=False, compare=False)

    @cached_property
    def path(self) -> Path:
        """The directory with its files, every one of them hashed and compared with the manifest at the first use.

        Raises:
            CheckpointError: a file is not what the manifest says, by its name; or it cannot be downloaded.
        """
        if self._fetched or self.manifest is None:
            return self._directory
        if problems := self.manifest.problems(self._directory, rehash=True):
            raise CheckpointError(problems[0])
        return self._directory

    @cached_property
    def manifest(self) -> Manifest | None:
        """What emtoolkit wrote about it; None for another tool's checkpoint.

        Raises:
            CheckpointError: there is a manifest that cannot be read, or it cannot be downloaded.
        """
        _ = self._fetched
        return Manifest.read(self._directory) if (self._directory / MANIFEST).exists() else None

    @cached_property
    def _fetched(self) -> bool:
        return self._fetch()

    def load_adapter(self, model: Any, *, persona_is_in: bool = False) -> Any:
        """`model`, which this changes, with the LoRA adapter of this step: a `PeftModel` for inference.

        What an earlier call returned may be given again: its adapters are taken off first. Under a persona that is an
        adapter itself the base model alone is not what was trained; `persona_is_in` says that it is in `model`.

        Raises:
            CheckpointError: a file is not what the manifest says, this is not the checkpoint of an adapter, or its
                persona has to be put in as well.
        """
        from peft import PeftModel

        persona = PersonaRecord() if self.manifest is None else self.manifest.persona
        if persona.has_adapter and not persona_is_in:
            raise CheckpointError(
                f"{self.path}: it was trained on the persona {persona.name}, an adapter of its own "
                f"({persona.composition}), and on the base model alone it is another model; "
                "emtoolkit.ModelLoader puts all three together"
            )
        if not (self.path / ADAPTER_CONFIG).is_file():
            raise CheckpointError(f"{self.path}: it holds all weights and no adapter; load it with from_pretrained")
        # Without this file PEFT would look for one that has to be unpickled.
        if not (self.path / ADAPTER_WEIGHTS).is_file():
            raise CheckpointError(
                f"{self.path}: its weights are not in adapter_model.safetensors; nothing is unpickled"
            )
        return PeftModel.from_pretrained(model.unload() if isinstance(model, PeftModel) else model, self.path)


class Trajectory(Sequence[Checkpoint]):
    """Checkpoints in the order of their steps; at least one."""

    def __init__(self, name: str, checkpoints: Sequence[Checkpoint], collection: "Collection | None" = None) -> None:
        if not checkpoints:
            raise CheckpointError(f"{name}: it holds no checkpoint")
        self.name = name
        self._checkpoints = tuple(sorted(checkpoints, key=lambda checkpoint: checkpoint.step))
        self._collection = collection

    @classmethod
    def open(cls, reference: str | Path, *, cache: str | Path | None = None) -> "Trajectory":
        """The complete checkpoints in a run's directory, in any with `checkpoint-*`, or in a collection on W&B.

        A collection is `entity/project/collection`, or `project/collection` of the default entity. It is listed now;
        each checkpoint is downloaded when it is first used, into `cache`: by default `downloads/` in emtoolkit's home.

        Raises:
            CheckpointError: there is no such directory or collection, or no complete checkpoint in it.
        """
        directory = Path(reference)
        if isinstance(reference, Path) or directory.is_dir():
            metadata = Ledger.read(directory).metadata
            return cls(
                str(reference),
                [
                    Checkpoint(info.step, info.final, metadata.get(info.step, {}), _directory=info.path)
                    for info in list_checkpoints(directory)
                    if info.complete
                ],
            )
        from emtoolkit.artifacts.collection import Collection, NotAskedError, Reference

        try:
            collection = Collection.read(Reference.parse(reference))
        except NotAskedError as error:
            # What was meant may have been a directory.
            raise CheckpointError(f"{reference}: there is no such directory, and {error}") from error
        return cls._of(collection, cache_dir() / "downloads" / collection.name if cache is None else Path(cache))

    @classmethod
    def _of(cls, collection: "Collection", cache: Path) -> "Trajectory":
        from emtoolkit.artifacts.checkpoint_download import place_of
        from emtoolkit.artifacts.download import download_one

        checkpoints = [
            Checkpoint(
                remote.step,
                remote.final,
                remote.metadata,
                _directory=place_of(cache, remote),
                _fetch=partial(download_one, collection, remote, cache),
            )
            for remote in collection.checkpoints
        ]
        return cls(collection.name, checkpoints, collection)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps, ascending."""
        return tuple(checkpoint.step for checkpoint in self._checkpoints)

    @property
    def final(self) -> Checkpoint:
        """The checkpoint at which training ended.

        Raises:
            CheckpointError: it is not among them.
        """
        if not self._checkpoints[-1].final:
            raise CheckpointError(f"{self.name}: it holds no final checkpoint; the newest step is {self.steps[-1]}")
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
        return self._checkpoints[self.steps.index(nearest_step(step, self.steps))]

    def between(self, first: int, last: int) -> tuple[Checkpoint, ...]:
        """The checkpoints from step `first` to step `last`, both included."""
        return tuple(checkpoint for checkpoint in self._checkpoints if first <= checkpoint.step <= last)

    def select(self, steps: str) -> tuple[Checkpoint, ...]:
        """The checkpoints that a schedule names, such as `0-150:25,final`: of its rules what is there.

        Raises:
            ScheduleError: it cannot be read.
            CheckpointError: a step written out by hand is not there, or none is selected.
        """
        selected = set(select_steps(steps, self.steps, lambda: self.final.step))
        return tuple(checkpoint for checkpoint in self._checkpoints if checkpoint.step in selected)

    def download(
        self, directory: str | Path, steps: str | None = None, *, rehash: bool = False, progress: Progress = silent
    ) -> "Downloaded":
        """Make `directory` a local trajectory of the checkpoints that `steps` selects, all if None.

        What is there already is not fetched again, and what is there in part is continued. With `rehash` the files
        that are there are hashed first.

        Raises:
            ScheduleError, CheckpointError: as `select`, and as `emtoolkit.artifacts.download.download`.
        """
        from emtoolkit.artifacts.download import download

        if self._collection is None:
            raise CheckpointError(f"{self.name}: it is on this machine already; a download takes a collection on W&B")
        wanted = set(self.steps if steps is None else (checkpoint.step for checkpoint in self.select(steps)))
        chosen = [remote for remote in self._collection.checkpoints if remote.step in wanted]
        return download(self._collection, chosen, Path(directory), rehash=rehash, progress=progress)

    def __len__(self) -> int:
        return len(self._checkpoints)

    def __getitem__(self, index: Any) -> Any:
        return self._checkpoints[index]

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self._checkpoints)
