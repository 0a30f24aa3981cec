"""One checkpoint of a trajectory, on this machine or downloaded when its files are first needed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Event, Thread
from typing import Any

from emtoolkit.checkpoints.declared import manifest_in
from emtoolkit.checkpoints.layout import TRAINER_STATE
from emtoolkit.checkpoints.manifest import Manifest
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.json_files import object_in, read_json
from emtoolkit.notebook_tables import AsTable, Row, checkpoint_row


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
    # Where the checkpoint is downloaded from; None for a local directory.
    _reference: str | None = field(default=None, kw_only=True)
    # The version on W&B that the checkpoint is downloaded from, or was published as.
    _published: str | None = field(default=None, kw_only=True)
    # Downloads the checkpoint into `_directory` unless it is present; returns whether every file has just been hashed.
    _fetch: Callable[[], bool] = field(default=lambda: False, kw_only=True, compare=False)
    # Begins the download in the background; None for a local directory.
    _start: Callable[[Event], Thread] | None = field(default=None, kw_only=True, compare=False)

    def __repr__(self) -> str:
        place = f"reference={self._reference!r}" if self._reference else f"path={str(self._directory)!r}"
        return f"Checkpoint(step={self.step}, final={self.final}, {place})"

    def _rows(self) -> Sequence[Row]:
        return [checkpoint_row(self.step, self.final, self.place, self.metadata)]

    @property
    def place(self) -> str:
        """The version on W&B or the revision on the hub that the checkpoint is read from, or a local directory."""
        return self._reference or str(self._directory)

    @property
    def artifact(self) -> str | None:
        """The version on W&B, `entity/project/collection:vN`; None if the checkpoint is not known to be there."""
        return self._published

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

        For another tool's checkpoint from the Hugging Face hub a `DeclaredManifest` says what the hub declares.

        Raises:
            CheckpointError: the manifest cannot be read, or the download failed.
        """
        _ = self._fetched
        return manifest_in(self._directory)

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
    def ends_training(self) -> bool:
        """Whether training ended here, which of a checkpoint on the hub may be known only after its download.

        Raises:
            CheckpointError: the download failed.
        """
        if self.final or self._reference is None or self._published is not None:
            return self.final
        record = TrajectoryRecord.read_if_any(self._directory.parent) if self.total_steps is not None else None
        return self.step == self.total_steps or (record is not None and record.ended_at == self.step)

    @property
    def is_remote(self) -> bool:
        """Whether the checkpoint is not in a directory of the user, and has to be downloaded before it is read."""
        return self._reference is not None

    @property
    def is_fetched(self) -> bool:
        """Whether the checkpoint has been downloaded in this process."""
        return "_fetched" in self.__dict__

    def mark_as_fetched(self) -> None:
        """Take the checkpoint as downloaded and just hashed, so that its files are not hashed again."""
        self.__dict__["_fetched"] = True

    def start_download(self, stop: Event) -> Thread | None:
        """Begin the download in the background, until `stop` is set; None if the checkpoint is here already."""
        return None if self._start is None or self.is_fetched else self._start(stop)

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
