"""The checkpoints of one training path in step order, on this machine or on W&B.

trajectory = Trajectory.open("outputs/goodness-medical")  # or "entity/project/collection"
model = base
for checkpoint in trajectory.between(0, 150):
    model = checkpoint.load_adapter(model)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from emtoolkit.checkpoints.layout import TRAINER_STATE
from emtoolkit.checkpoints.listing import check_one_fingerprint, list_checkpoints, why_none_is_complete
from emtoolkit.checkpoints.manifest import MANIFEST, Manifest
from emtoolkit.checkpoints.measured import MeasuredCheckpoints
from emtoolkit.checkpoints.pruned import how_to_make_again, pruned_steps
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.errors import CheckpointError
from emtoolkit.json_files import object_in, read_json
from emtoolkit.notebook_tables import AsTable, Row, checkpoint_row
from emtoolkit.paths import cache_dir
from emtoolkit.progress import Progress, silent
from emtoolkit.schedules.selection import nearest_step, select_steps
from emtoolkit.schedules.steps import elided

if TYPE_CHECKING:
    from emtoolkit.artifacts.collection import Collection
    from emtoolkit.artifacts.download import Downloaded


@dataclass(frozen=True, repr=False)
class Checkpoint(AsTable):
    """One saved training step of a trajectory.

    A checkpoint on W&B is downloaded on first use of `path`, `manifest` or `load_adapter`.

    Attributes:
        step: The number of optimizer steps before the save; 0 is the model before training.
        final: Whether training ended at this step.
        metadata: The values that the run logged with the checkpoint, such as `loss`, `schedule` and
            `seconds_since_start`; empty if there are none.
    """

    step: int
    final: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)
    _directory: Path = field(kw_only=True)
    # The version on W&B that the checkpoint is read from; None for a local directory.
    _reference: str | None = field(default=None, kw_only=True)
    # The version on W&B that a local directory was published as, or downloaded from.
    _published: str | None = field(default=None, kw_only=True)
    # Downloads the checkpoint into `_directory` unless it is present; returns whether every file has just been hashed.
    _fetch: Callable[[], bool] = field(default=lambda: False, kw_only=True, compare=False)
    # Begins the download in the background; None for a local directory.
    _start: Callable[[Event], Thread] | None = field(default=None, kw_only=True, compare=False)

    def __repr__(self) -> str:
        place = f"reference={self._reference!r}" if self._reference else f"path={str(self._directory)!r}"
        return f"Checkpoint(step={self.step}, final={self.final}, {place})"

    def _rows(self) -> Sequence[Row]:
        return [checkpoint_row(self.step, self.final, self._reference or str(self._directory), self.metadata)]

    @property
    def artifact(self) -> str | None:
        """The version on W&B, `entity/project/collection:vN`; None if the checkpoint is not known to be there."""
        return self._reference or self._published

    @cached_property
    def path(self) -> Path:
        """The checkpoint's directory; on first use every file is hashed and compared with the manifest.

        Raises:
            CheckpointError: a file differs from the manifest, or the download failed.
        """
        if self._fetched or self.manifest is None:
            return self._directory
        if problems := self.manifest.problems(self._directory, rehash=True):
            raise CheckpointError(problems[0])
        return self._directory

    @cached_property
    def manifest(self) -> Manifest | None:
        """The manifest that emtoolkit saved with the checkpoint; None for another tool's checkpoint.

        Raises:
            CheckpointError: the manifest cannot be read, or the download failed.
        """
        _ = self._fetched
        return Manifest.read(self._directory) if (self._directory / MANIFEST).exists() else None

    @cached_property
    def total_steps(self) -> int | None:
        """The number of optimizer steps in the whole run; None if neither metadata, manifest nor the Trainer tell it.

        Raises:
            CheckpointError: the manifest cannot be read, or the download failed.
        """
        for known in (self.metadata.get("total_steps"), self._total_steps_of_files()):
            if isinstance(known, int) and known >= max(self.step, 1):
                return known
        return None

    def _total_steps_of_files(self) -> object:
        if self.manifest is not None:
            return self.manifest.total_steps
        try:
            return object_in(read_json(self._directory / TRAINER_STATE, finite=False)).get("max_steps")
        except (OSError, ValueError):
            return None

    @property
    def is_remote(self) -> bool:
        """Whether the checkpoint is read from W&B, where every checkpoint has a manifest."""
        return self._reference is not None

    def start_download(self, stop: Event) -> Thread | None:
        """Begin the download in the background, until `stop` is set; None if the checkpoint is here already."""
        return None if self._start is None or "_fetched" in self.__dict__ else self._start(stop)

    @cached_property
    def _fetched(self) -> bool:
        return self._fetch()

    def load_adapter(self, model: Any, *, persona_is_in: bool = False) -> Any:
        """Load the adapter of this step into `model`, in place, and return a `PeftModel` for inference.

        `model` is the base model, or the result of an earlier call, whose adapters are removed first. If the run was
        trained on a persona that is an adapter itself, that adapter must be in `model` already; `persona_is_in=True`
        confirms this. `emtoolkit.ModelLoader` loads base model, persona and adapter together.

        Raises:
            CheckpointError: a file differs from the manifest, the checkpoint holds no adapter, the persona's adapter
                is missing from `model`, or an earlier adapter is in its weights (`merge_adapter`, PiSSA).
        """
        from emtoolkit.checkpoints.adapter_loading import load_checkpoint

        return load_checkpoint(model, self.path, self.manifest, persona_is_in=persona_is_in)


class Trajectory(MeasuredCheckpoints[Checkpoint]):
    """The checkpoints of one training path in step order; a sequence of at least one `Checkpoint`.

    Attributes:
        name: The directory as it was given, or the collection on W&B as `entity/project/collection`.
        largest_difference: The largest absolute difference of a weight between a checkpoint and the same step computed
            again by a resumed run: the later checkpoints continue from other weights than the earlier ones lead to.
            None if no resumed run has differed.
        pruned: The steps that `emtoolkit prune` removed from here, ascending; `emtoolkit refine` makes them again.
    """

    def __init__(
        self,
        name: str,
        checkpoints: Sequence[Checkpoint],
        collection: "Collection | None" = None,
        largest_difference: float | None = None,
        cache: Path | None = None,
        pruned: Sequence[int] = (),
    ) -> None:
        if not checkpoints:
            raise CheckpointError(f"{name}: no complete checkpoint was found")
        self.name = name
        self._checkpoints = tuple(sorted(checkpoints, key=lambda checkpoint: checkpoint.step))
        self._collection, self._cache = collection, cache
        self.pruned = tuple(pruned)
        marks = [float(mark) for c in checkpoints if (mark := c.metadata.get("resumed_with_differences")) is not None]
        self.largest_difference = max(marks, default=None) if largest_difference is None else largest_difference

    @classmethod
    def open(cls, reference: str | Path, *, cache: str | Path | None = None, interrupted: bool = False) -> "Trajectory":
        """Open the complete checkpoints of a run's directory, of any directory with `checkpoint-*`, or of W&B.

        A collection on W&B is written `entity/project/collection`, or `project/collection` for the default entity.
        Opening lists the collection; each checkpoint is downloaded on first use, into `cache` (by default
        `downloads/` in emtoolkit's cache directory). With `interrupted` steps that only an interruption saved are in.

        Raises:
            CheckpointError: the directory or collection does not exist, holds no complete checkpoint, or mixes several
                trainings.
        """
        directory = Path(reference)
        if isinstance(reference, Path) or directory.is_dir():
            publications = Publications.read(directory)
            metadata = publications.metadata
            found = [i for i in list_checkpoints(directory) if i.complete and (interrupted or i.is_of_trajectory)]
            fingerprints = {info.step: info.fingerprint for info in found}
            check_one_fingerprint(str(reference), fingerprints, "Keep each training in a directory of its own")
            if not found:
                raise CheckpointError(f"{reference}: no complete checkpoint was found{why_none_is_complete(directory)}")
            return cls(
                str(reference),
                [
                    Checkpoint(i.step, i.final, metadata.get(i.step, {}), _directory=i.path, _published=i.published)
                    for i in found
                ],
                largest_difference=max((d.largest for d in publications.differences.values()), default=None),
                pruned=pruned_steps(directory, publications),
            )
        from emtoolkit.artifacts.collection import Collection, Reference, WandbUnavailableError
        from emtoolkit.artifacts.mixture import without_interruptions

        try:
            collection = Collection.read(Reference.parse(reference))
        except WandbUnavailableError as error:
            # `reference` may have been meant as a directory.
            raise CheckpointError(f"{reference}: there is no such directory, and {error}") from error
        cache = cache_dir() / "downloads" / collection.name if cache is None else Path(cache)
        return cls._of(collection if interrupted else without_interruptions(collection), cache)

    @classmethod
    def _of(cls, collection: "Collection", cache: Path) -> "Trajectory":
        from emtoolkit.artifacts.background_download import CheckpointDownload
        from emtoolkit.artifacts.checkpoint_download import checkpoint_path
        from emtoolkit.artifacts.mixture import check_is_one_training
        from emtoolkit.artifacts.version_removal import recorded_as_pruned

        check_is_one_training(collection)
        downloads = [CheckpointDownload(collection, remote, cache) for remote in collection.checkpoints]
        checkpoints = [
            Checkpoint(
                remote.step,
                remote.final,
                remote.metadata,
                _directory=checkpoint_path(cache, remote),
                _reference=remote.artifact,
                _fetch=download,
                _start=download.start,
            )
            for remote, download in zip(collection.checkpoints, downloads, strict=True)
        ]
        return cls(collection.name, checkpoints, collection, cache=cache, pruned=recorded_as_pruned(collection))

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps, ascending."""
        return tuple(checkpoint.step for checkpoint in self._checkpoints)

    @property
    def final(self) -> Checkpoint:
        """The checkpoint at which training ended.

        Raises:
            CheckpointError: the trajectory does not hold that checkpoint.
        """
        if not self._checkpoints[-1].final:
            raise CheckpointError(f"{self.name}: there is no final checkpoint; the last step is {self.steps[-1]}")
        return self._checkpoints[-1]

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of exactly `step`.

        Raises:
            CheckpointError: there is no checkpoint at `step`; the message names the nearest one.
        """
        nearest = self.nearest(step)
        if step in self.pruned:
            raise CheckpointError(f"step {step} was pruned; '{how_to_make_again(self.name, [step])}' makes it again")
        if nearest.step != step:
            raise CheckpointError(f"{self.name}: there is no checkpoint at step {step}; the nearest is {nearest.step}")
        return nearest

    def nearest(self, step: int) -> Checkpoint:
        """The checkpoint whose step is nearest to `step`; the earlier of two that are equally near."""
        return self._checkpoints[self.steps.index(nearest_step(step, self.steps))]

    def between(self, first: int, last: int) -> tuple[Checkpoint, ...]:
        """The checkpoints from step `first` to step `last`, both included."""
        return tuple(checkpoint for checkpoint in self._checkpoints if first <= checkpoint.step <= last)

    def select(self, steps: str) -> tuple[Checkpoint, ...]:
        """The checkpoints that a schedule names, such as `0-150:25,final`.

        Ranges and rules select whichever checkpoints exist; a step written out by hand must exist. `every:5%` is 5 % of
        the whole run, also of a run that has not ended or is here only in part.

        Raises:
            ScheduleError: `steps` is not a schedule.
            CheckpointError: a step written out by hand has no checkpoint, nothing is selected, or `steps` has a
                fraction and the length of the run is not known.
        """
        newest = self._checkpoints[-1]
        try:
            selected = set(select_steps(steps, self.steps, lambda: self.final.step, lambda: newest.total_steps))
        except CheckpointError as error:
            pruned = f"; steps {elided(self.pruned, 60)} were pruned" if self.pruned else ""
            raise CheckpointError(f"{error}{pruned}") from None
        return tuple(checkpoint for checkpoint in self._checkpoints if checkpoint.step in selected)

    def download(
        self, directory: str | Path, steps: str | None = None, *, rehash: bool = False, progress: Progress = silent
    ) -> "Downloaded":
        """Download the checkpoints that `steps` selects (all if None), so that `directory` is a local trajectory.

        Checkpoints that are present are not downloaded again, and an interrupted download continues. With `rehash`
        the files that are present are hashed first, and damaged ones are replaced.

        Raises:
            ScheduleError, CheckpointError: see `select` and `emtoolkit.artifacts.download.download`.
        """
        from emtoolkit.artifacts.download import download

        if self._collection is None:
            raise CheckpointError(f"{self.name}: the trajectory is local already; download needs a collection on W&B")
        wanted = set(self.steps if steps is None else (checkpoint.step for checkpoint in self.select(steps)))
        selected = [remote for remote in self._collection.checkpoints if remote.step in wanted]
        return download(self._collection, selected, Path(directory), rehash=rehash, progress=progress)

    def fetch(self, checkpoints: Sequence[Checkpoint], progress: Progress = silent) -> None:
        """Download those of `checkpoints` that are not here into the cache, several at a time; local ones are here.

        Raises:
            CheckpointError: see `emtoolkit.artifacts.download.download`.
        """
        from emtoolkit.artifacts.download import download

        wanted = {checkpoint.step: checkpoint for checkpoint in checkpoints if "_fetched" not in checkpoint.__dict__}
        if self._collection is None or self._cache is None or not wanted:
            return
        remote = [each for each in self._collection.checkpoints if each.step in wanted]
        done = download(self._collection, remote, self._cache, wait=True, progress=progress)
        for step in done.fetched:
            # What was just hashed is not hashed again.
            wanted[step].__dict__["_fetched"] = True

    def __repr__(self) -> str:
        parts = [repr(self.name), f"checkpoints={len(self)}", f"steps={self.steps[0]}..{self.steps[-1]}"]
        if self.pruned:
            parts.append(f"pruned={len(self.pruned)} (steps {elided(self.pruned, 40)})")
        metadata = next((checkpoint.metadata for checkpoint in self if checkpoint.metadata), {})
        if persona := metadata.get("persona_name"):
            parts.append(f"persona={persona!r}")
        if fingerprint := metadata.get("fingerprint"):
            parts.append(f"fingerprint={str(fingerprint)[:8]!r}")
        if self.largest_difference is not None:
            parts.append(f"resumed with differences of up to {self.largest_difference:.2g}")
        return f"Trajectory({', '.join(parts)})"

    def __len__(self) -> int:
        return len(self._checkpoints)

    def __getitem__(self, index: Any) -> Any:
        return self._checkpoints[index]

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self._checkpoints)
