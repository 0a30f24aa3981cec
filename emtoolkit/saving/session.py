"""One process saving one trajectory: the locked output directory, its record, the writer and the publisher.

Opened when training begins and closed when it ends, however it ends. Knows nothing of the Trainer.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from emtoolkit.artifacts.publish import Publication, WandbPublisher, collection_name, collection_tags, fit_for_wandb
from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.publications import WandbRun, add_collection, add_run, add_saved
from emtoolkit.checkpoints.records import CheckpointMetadata
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError, ConfigError
from emtoolkit.saving.output_directory import OutputDirectory
from emtoolkit.saving.resume_state import (
    RESUME_DIRECTORY,
    ResumeState,
    adopt_resume_state,
    remove_resume_states,
    write_resume_state,
)
from emtoolkit.saving.snapshot import ModelState, SnapshotBuffers
from emtoolkit.saving.writer import CheckpointContents, CheckpointWriter, DiskThread, OnError, Saved
from emtoolkit.schedules.steps import Steps
from emtoolkit.storage.atomic import remove_temporaries
from emtoolkit.storage.lock import lock_directory
from emtoolkit.storage.thread_priority import DISK

logger = logging.getLogger(__name__)

# A save of up to so many bytes is written in the time that training leaves. Of larger ones at every other step the
# disk's thread was seen to fall behind at a low priority, and the third save waits for it while a core stands idle.
_SMALL = 32_000_000


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a session saves; `ScheduledCheckpointCallback` documents each of these."""

    max_in_flight: int = 2
    on_error: OnError = "raise"
    publish: bool = True
    publish_timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.max_in_flight < 1:
            raise ConfigError(f"max_in_flight: {self.max_in_flight} is not a number of copies, which is 1 or more")
        if self.on_error not in get_args(OnError):
            raise ConfigError(f"on_error: {self.on_error!r} is neither 'raise' nor 'warn'")
        if not self.publish_timeout >= 0:
            raise ConfigError(f"publish_timeout: {self.publish_timeout} is not a number of seconds")


class SavingSession:
    """Saves steps of the trajectory `identity` into `directory`.

    The tensors of `state` are the live ones, of which every save is a copy. They are not if the model is `sharded`
    over processes; then every save comes with its `contents`.

    Raises:
        CheckpointError: the directory holds another trajectory or another tool's checkpoints, another process is
            saving into it, or the disk has no room for what `steps` will take.
    """

    def __init__(
        self,
        directory: Path,
        state: ModelState,
        identity: Identity,
        steps: Steps,
        total_steps: int,
        schedule: str,
        settings: SessionSettings,
        *,
        sharded: bool = False,
    ) -> None:
        self.steps = steps
        self.total_steps = total_steps
        # The step whose weights the model holds; None while the optimizer is at work on them, or if nobody can tell.
        self.step_in_memory: int | None = None
        self.run_metadata: dict[str, Any] = {}
        self.saved: list[Saved] = []
        self._directory = directory
        self.state = state
        self.sharded = sharded
        self._identity = identity
        self._fingerprint = identity.fingerprint
        self._settings = settings
        self._publications: dict[int, Publication] = {}
        self._started = time.time()
        self._lock = lock_directory(directory)
        try:
            remove_temporaries([directory, directory / RESUME_DIRECTORY])
            found = OutputDirectory.open(directory)
            found.check_belongs_to(identity)
            found.check_room(steps, _bytes_of_copy(state))
            self._record = TrajectoryRecord(
                self._fingerprint, total_steps, schedule, identity.fingerprinted, split=identity.split
            )
            self._record.write(directory)
            add_collection(directory, collection_name(identity), collection_tags(identity))
            self._run = _run_of_this_process() if settings.publish else None
            if self._run is not None:
                add_run(directory, WandbRun.of(self._run))
        except BaseException:
            self._lock.release()
            raise
        self.disk = DiskThread(settings.on_error, DISK if _bytes_of_copy(state) <= _SMALL else 0)
        self._writer = CheckpointWriter(directory, identity, total_steps, self.disk)
        self._buffers = None if sharded else SnapshotBuffers(state, settings.max_in_flight)
        if self._buffers is not None:
            self._buffers.prepare()
        self.publisher = WandbPublisher(self._run, identity) if self._run is not None else None

    @property
    def waited_seconds(self) -> float:
        """How long the training thread has waited for memory of earlier saves."""
        return self.disk.waited_seconds + (self._buffers.waited_seconds if self._buffers is not None else 0.0)

    def save(self, step: int, *, final: bool, contents: CheckpointContents | None = None) -> None:
        """Save the model as it is, or `contents`, as `step`, once; a `final` known only later adds that alias."""
        known = self._publications.get(step)
        if known is None:
            path = self._directory / checkpoint_name(step)
            self._publications[step] = first = Publication(step, path, final, self._metadata(step))
            self._writer.save(
                step,
                contents or self._copy(step),
                lambda: self._note(first),
                lambda saved: self._on_durable(saved, first),
            )
        elif final and not known.final:
            self._publications[step] = now_final = replace(known, final=True)
            self.disk.submit(lambda: self._publish(now_final))

    def _copy(self, step: int) -> CheckpointContents:
        if self._buffers is None:
            raise RuntimeError("no process has a sharded model whole, so there is nothing to copy")
        return CheckpointContents.of_copy(self.state, self._buffers, step)

    def save_resume_state(
        self,
        optimizer: Any,
        lr_scheduler: Any,
        trainer_state: Any,
        rng: Sequence[Mapping[str, Any]],
        callbacks: Sequence[Any],
    ) -> None:
        """Copy what continuing from this moment needs, and write it in the background.

        `rng` are the random states of all ranks, and `callbacks` those whose state is to be kept.
        """
        state = ResumeState.capture(self.state, optimizer, lr_scheduler, trainer_state, rng, callbacks)
        self.disk.submit(
            lambda: write_resume_state(self._directory, state, self.state, self._identity, self.total_steps)
        )

    def adopt_resume_state(self, step: int, source: Path, rng: Sequence[Mapping[str, Any]]) -> None:
        """Make what the Trainer has saved into `source` the resume checkpoint of `step`; nothing stays in `source`."""
        self.disk.submit(
            lambda: adopt_resume_state(self._directory, source, step, rng, self._identity, self.total_steps)
        )

    def end_at(self, step: int, *, keep_resume_state: bool) -> None:
        """Training ended at `step` and every save of it is on disk: nothing is left to resume."""
        self._record.ended(step).write(self._directory)
        if not keep_resume_state:
            remove_resume_states(self._directory)

    def close(self) -> None:
        """Wait for the disk always, for W&B at most `publish_timeout`, and let go of the directory."""
        try:
            self.disk.drain()
        finally:
            self.disk.close()
            self._lock.release()
            self._wait_for_publisher()

    @property
    def unpublished(self) -> Mapping[int, str]:
        """The saved steps that W&B has not, nor the log of an offline run, and why; complete after `close`."""
        return self.publisher.failures if self.publisher is not None else {}

    def _wait_for_publisher(self) -> None:
        if self.publisher is None:
            return
        self.publisher.drain(self._settings.publish_timeout)
        if missing := sorted(self.unpublished):
            logger.warning(
                "%d checkpoints are not on W&B (steps %s; %s); they are complete in %s, and "
                "'emtoolkit sync %s' publishes them%s",
                len(missing),
                ", ".join(map(str, missing)),
                self.unpublished[missing[0]],
                self._directory,
                self._directory,
                _word_on_unbounded_end(self._run),
            )

    def _metadata(self, step: int) -> Mapping[str, Any]:
        metadata = CheckpointMetadata.of(
            step=step,
            total_steps=self.total_steps,
            fingerprint=self._fingerprint,
            schedule=self._record.schedule,
            seconds_since_start=round(time.time() - self._started, 3),
            persona=self._identity.persona,
            base_place=self._identity.base_place,
            persona_place=self._identity.persona_place,
            metrics=self.run_metadata,
        )
        return fit_for_wandb(metadata.to_json())

    def _note(self, publication: Publication) -> None:
        # Before the checkpoint is there: a kill between the two must not leave one of which nothing is known.
        run = str(self._run.id) if self._run is not None else None
        try:
            add_saved(self._directory, publication.step, publication.metadata, run)
        except CheckpointError as error:
            # The weights may still have room, and they are what matters.
            logger.warning("what belongs to step %d was not noted: %s", publication.step, error)

    def _on_durable(self, saved: Saved, publication: Publication) -> None:
        self.saved.append(saved)
        self._publish(publication)

    def _publish(self, publication: Publication) -> None:
        if self.publisher is not None:
            self.publisher.publish(publication)


def _run_of_this_process() -> Any:
    """The W&B run that the program began, None if it began none."""
    import wandb

    return wandb.run


def _word_on_unbounded_end(run: Any) -> str:
    """A hint for programs that began the W&B run themselves: by default its end waits for the server for long."""
    if run.offline or run.settings.finish_timeout > 0:
        return ""
    return "; the end of the W&B run may wait for the server, which WANDB_FINISH_TIMEOUT=60 bounds"


def _bytes_of_copy(state: ModelState) -> int:
    return sum(tensor.nbytes for tensor in {t.data_ptr(): t for t in state.tensors.values()}.values())
