"""The checkpoints of one training path in step order, on this machine or on W&B.

trajectory = Trajectory.open("outputs/goodness-medical")  # or "entity/project/collection"
model = base
for checkpoint in trajectory.between(0, 150):
    model = checkpoint.load_adapter(model)
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from emtoolkit.checkpoints.checkpoint import Checkpoint
from emtoolkit.checkpoints.listing import check_one_fingerprint, list_checkpoints, why_none_is_complete
from emtoolkit.checkpoints.measured import MeasuredCheckpoints
from emtoolkit.checkpoints.pruned import pruned_steps, was_pruned
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.checkpoints.remote import Downloaded, Source
from emtoolkit.errors import CheckpointError
from emtoolkit.hub.names import is_hub
from emtoolkit.progress import Progress, silent
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.selection import nearest_step, select_steps
from emtoolkit.schedules.steps import elided

__all__ = ["Checkpoint", "Trajectory"]


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
        source: Source | None = None,
        largest_difference: float | None = None,
        pruned: Sequence[int] = (),
    ) -> None:
        if not checkpoints:
            raise CheckpointError(f"{name}: no complete checkpoint was found")
        self.name = name
        self._checkpoints = tuple(sorted(checkpoints, key=lambda checkpoint: checkpoint.step))
        self._source = source
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
        place = None if cache is None else Path(cache)
        if is_hub(reference):
            from emtoolkit.hub.hub_trajectory import open_hub

            remote = open_hub(reference, place)
        else:
            from emtoolkit.artifacts.collection_trajectory import open_collection

            remote = open_collection(reference, place, interrupted=interrupted)
        return cls(remote.name, remote.checkpoints, remote.source, pruned=remote.pruned)

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
        if not self._checkpoints[-1].ends_training:
            raise CheckpointError(f"{self.name}: there is no final checkpoint; the last step is {self.steps[-1]}")
        return self._checkpoints[-1]

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of exactly `step`.

        Raises:
            CheckpointError: there is no checkpoint at `step`; the message names the nearest one.
        """
        nearest = self.nearest(step)
        if step in self.pruned:
            raise CheckpointError(was_pruned(self.name, step))
        if nearest.step != step:
            raise CheckpointError(f"{self.name}: there is no checkpoint at step {step}; the nearest is {nearest.step}")
        return nearest

    def nearest(self, step: int) -> Checkpoint:
        """The checkpoint whose step is nearest to `step`; the earlier of two that are equally near."""
        return self._checkpoints[self.steps.index(nearest_step(step, self.steps))]

    def between(self, first: int, last: int) -> tuple[Checkpoint, ...]:
        """The checkpoints from step `first` to step `last`, both included."""
        return tuple(checkpoint for checkpoint in self._checkpoints if first <= checkpoint.step <= last)

    def select(self, steps: str | Schedule | Iterable[int]) -> tuple[Checkpoint, ...]:
        """The checkpoints that a schedule names, such as `0-150:25,final`, or those of a list of steps.

        Ranges and rules select whichever checkpoints exist; a step written out by hand must exist. `every:5%` is 5 % of
        the whole run, also of a run that has not ended or is here only in part.

        Raises:
            ScheduleError: `steps` is not a schedule.
            CheckpointError: a step written out by hand has no checkpoint, nothing is selected, or `steps` has a
                fraction and the length of the run is not known.
        """
        newest = self._checkpoints[-1]
        named = steps if isinstance(steps, str) else str(Schedule.of_argument(steps))
        try:
            selected = set(select_steps(named, self.steps, lambda: self.final.step, lambda: newest.total_steps))
        except CheckpointError as error:
            pruned = f"; steps {elided(self.pruned, 60)} were pruned" if self.pruned else ""
            raise CheckpointError(f"{error}{pruned}") from None
        return tuple(checkpoint for checkpoint in self._checkpoints if checkpoint.step in selected)

    def download(
        self, directory: str | Path, steps: str | None = None, *, rehash: bool = False, progress: Progress = silent
    ) -> Downloaded:
        """Download the checkpoints that `steps` selects (all if None), so that `directory` is a local trajectory.

        Checkpoints that are present are not downloaded again, and an interrupted download continues. With `rehash`
        the files that are present are hashed first, and damaged ones are replaced.

        Raises:
            ScheduleError, CheckpointError: see `select` and `emtoolkit.artifacts.download.download`.
        """
        if self._source is None:
            raise CheckpointError(f"{self.name}: the trajectory is local already; download needs a collection on W&B")
        wanted = {*self.steps} if steps is None else {checkpoint.step for checkpoint in self.select(steps)}
        return self._source.download(wanted, Path(directory), rehash=rehash, progress=progress)

    def fetch(self, checkpoints: Sequence[Checkpoint], progress: Progress = silent) -> None:
        """Download those of `checkpoints` that are not here into the cache, several at a time; local ones are here.

        Raises:
            CheckpointError: see `emtoolkit.artifacts.download.download`.
        """
        wanted = {checkpoint.step: checkpoint for checkpoint in checkpoints if not checkpoint.is_fetched}
        if self._source is None or not wanted:
            return
        for step in self._source.fetch(wanted, progress).fetched:
            wanted[step].mark_as_fetched()

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
