"""One process that saves one trajectory: the locked output directory, its record, the writer and the publisher.

A session is open from the beginning of training until training ends for any reason. It does not know the Trainer.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.attached_run import active_run
from emtoolkit.artifacts.destination import Destination
from emtoolkit.artifacts.publication import Publication, collection_name, collection_tags, fit_for_wandb
from emtoolkit.artifacts.publish import WandbPublisher
from emtoolkit.artifacts.publish_end import wait_for_publisher
from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.manifest import TrajectorySeal
from emtoolkit.checkpoints.publications import (
    Difference,
    Publications,
    WandbRun,
    add_collection,
    add_difference,
    add_metrics,
    add_run,
    add_saved,
)
from emtoolkit.checkpoints.records import CheckpointMetadata
from emtoolkit.checkpoints.saved_for import SavedFor, with_reason
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.finite_weights import check_finite
from emtoolkit.saving.interruption_saves import InterruptionSaves
from emtoolkit.saving.model_state import ModelState
from emtoolkit.saving.output_directory import OutputDirectory
from emtoolkit.saving.recomputed import LARGEST_NOISE, Recomputed
from emtoolkit.saving.requests import forget_requests
from emtoolkit.saving.resume_state import (
    RESUME_DIRECTORY,
    ResumeState,
    adopt_resume_state,
    remove_resume_states,
    write_resume_state,
)
from emtoolkit.saving.step_metrics import StepMetrics
from emtoolkit.saving.writer import CheckpointContents, CheckpointWriter, DiskThread, Saved
from emtoolkit.schedules.resume_keep import kept_states
from emtoolkit.schedules.save_options import SaveOptions
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.steps import elided
from emtoolkit.storage.atomic import remove_temporaries
from emtoolkit.storage.lock import lock_directory
from emtoolkit.storage.thread_priority import DISK

logger = logging.getLogger(__name__)

# A save of up to this many bytes is written in the time that training leaves. With larger saves at every other step
# the disk thread fell behind at a low priority, and the third save waited for it while a core was idle.
_SMALL = 32_000_000


# The time that W&B gets after a signal for what it has begun, in seconds.
SECONDS_AFTER_SIGNAL = 2.0


class SavingSession:
    """Saves steps of the trajectory of `seal` into `directory`; `state` is the model's, before the first save.

    Raises:
        CheckpointError: the directory holds another trajectory or another tool's checkpoints, another process is
            saving into it, or the disk has no room for the steps of `schedule`.
    """

    def __init__(
        self, directory: Path, state: ModelState, seal: TrajectorySeal, schedule: Schedule, options: SaveOptions
    ) -> None:
        self.state = state
        self.metrics = StepMetrics()
        # Finishes what the jobs of the disk thread wait for.
        self.before_close: Callable[[], None] = lambda: None
        self.saved: list[Saved] = []
        # The steps that this run computed again, with other weights than their checkpoints hold.
        self.differences: dict[int, Difference] = {}
        # Called in the background for each saved step whose metrics are recorded.
        self.on_settled: Callable[[int], None] = lambda step: None
        self._directory = directory
        self._seal = seal
        self._options = options
        self._kept_states = kept_states(options.resume_keep, seal.total_steps)
        self._publications: dict[int, Publication] = {}
        # The saved steps that the Trainer may still log or evaluate.
        self._unsettled: list[int] = []
        self._is_on_cpu = all(tensor.device.type == "cpu" for tensor in state.tensors.values())
        self._started = time.time()
        size = _bytes_of_copy(state)
        self._lock = lock_directory(directory)
        try:
            self._record = self._claim(schedule, size)
            self._run = active_run() if options.publish else None
            if self._run is not None:
                add_run(directory, WandbRun.of(self._run))
        except BaseException:
            self._lock.release()
            raise
        self.disk = DiskThread(options.on_error, DISK if size <= _SMALL else 0)
        self._writer = CheckpointWriter(directory, seal, self.disk)
        self.publisher = (
            WandbPublisher(self._run, Destination.of(directory, seal.identity, on_cpu=self._is_on_cpu))
            if self._run is not None
            else None
        )

    def _claim(self, schedule: Schedule, bytes_each: int) -> TrajectoryRecord:
        """Check the locked directory, and write the record of this trajectory into it."""
        directory, identity, total_steps = self._directory, self._seal.identity, self._seal.total_steps
        remove_temporaries([directory, directory / RESUME_DIRECTORY])
        forget_requests(directory, warn=True)
        found = OutputDirectory.open(directory)
        found.check_belongs_to(identity)
        found.check_room(schedule.steps(total_steps), bytes_each)
        record = TrajectoryRecord.of(identity, total_steps, str(schedule))
        record.write(directory)
        self._interruptions = InterruptionSaves(directory, found.checkpoints, schedule.steps(total_steps))
        publications = Publications.read(directory)
        self._pruned, self._only_here = found.pruned, publications.only_here
        self._largest_difference = max((d.largest for d in publications.differences.values()), default=0.0)
        if not publications.has_own_collection:
            name, tags = collection_name(identity), collection_tags(identity)
            add_collection(directory, name, tags, on_cpu=self._is_on_cpu)
        return record

    def save(
        self, step: int, contents: Callable[[], CheckpointContents], *, final: bool, saved_for: SavedFor = "schedule"
    ) -> None:
        """Save `contents()` as `step`, once; a later call with `final` adds that alias and does not copy again."""
        if step in self._publications:
            if final:
                self.mark_final(step)
            return
        if step in self._pruned and not final:
            return  # removed on purpose
        path = self._directory / checkpoint_name(step)
        metadata = with_reason(self._metadata(step), saved_for)
        self._publications[step] = publication = Publication(step, path, final, metadata)
        self._unsettled.append(step)
        self._writer.save(step, contents(), lambda: self._note(publication), self._note_saved)

    def mark_final(self, step: int) -> None:
        """Publish `step`, which is saved already, as the final checkpoint, unless it was saved as the final one."""
        publication = self._publications[step]
        if not publication.final:
            self._publications[step] = final = replace(publication, final=True)
            if step not in self._unsettled:
                self.disk.submit(lambda: self._publish(final))

    def settle(self) -> None:
        """Record the metrics of the saved steps, and publish the steps: nothing more is logged at them."""
        unsettled, self._unsettled = self._unsettled, []
        for step in unsettled:
            saved = self._publications[step]
            metrics = {k: v for k, v in self.metrics.of(step).items() if k not in CheckpointMetadata.model_fields}
            publication = replace(saved, metadata=fit_for_wandb({**saved.metadata, **metrics}))
            self._publications[step] = publication
            self.disk.submit(partial(self._publish_settled, publication, fit_for_wandb(metrics)))

    def save_resume_state(self, state: ResumeState) -> None:
        """Write `state` as the newest resume checkpoint in the background."""

        def write() -> None:
            if self._options.on_nan == "stop":
                check_finite(state.step, state.tensors)
            write_resume_state(self._directory, state, self._seal, self._kept_states)

        self.disk.submit(write)

    def adopt_resume_state(self, step: int, source: Path, rng: Sequence[Mapping[str, Any]]) -> None:
        """Move the files that the Trainer saved into `source` to the resume checkpoint of `step`, in the background.

        `rng` are the random states of all ranks.
        """
        self.disk.submit(lambda: adopt_resume_state(self._directory, source, step, rng, self._seal, self._kept_states))

    def end(self, step: int) -> None:
        """Training ended at `step`: wait for the disk, record the end, and delete the resume states that are not kept.

        Raises:
            CheckpointError: a save failed.
        """
        self.settle()
        self.disk.drain()
        self._record.ended(step).write(self._directory)
        if not self._options.resume_at_end:
            remove_resume_states(self._directory, self._kept_states)

    def close(self, *, interrupted: bool = False) -> None:
        """Wait for the disk, wait at most `publish_timeout` for W&B, and release the directory.

        After a signal (`interrupted`) W&B gets a moment, which another signal ends.

        Raises:
            KeyboardInterrupt: the first signal came while W&B was waited for; all checkpoints are on disk.
        """
        patience = self._options.publish_timeout
        patience = min(patience, SECONDS_AFTER_SIGNAL) if interrupted else patience
        try:
            self.before_close()
            self.settle()
            self.disk.drain()
        except KeyboardInterrupt:
            patience = 0.0
            raise
        finally:
            self.disk.close()
            forget_requests(self._directory, warn=False)
            self._lock.release()
            self._sum_up_differences()
            if self.publisher is not None:
                wait_for_publisher(self.publisher, self._run, self._directory, patience, interrupted=interrupted)

    @property
    def unpublished(self) -> Mapping[int, str]:
        """The saved steps that neither W&B nor the log of an offline run has, and why; complete after `close`."""
        return self.publisher.failures if self.publisher is not None else {}

    def _metadata(self, step: int) -> Mapping[str, Any]:
        identity = self._seal.identity
        metadata = CheckpointMetadata.of(
            step=step,
            total_steps=self._seal.total_steps,
            fingerprint=self._record.fingerprint,
            schedule=self._record.schedule,
            seconds_since_start=round(time.time() - self._started, 3),
            persona=identity.persona,
            base_place=identity.base_place,
            persona_place=identity.persona_place,
        )
        return fit_for_wandb(metadata.to_json())

    def _marked(self, publication: Publication) -> Publication:
        """`publication`, with the mark of a trajectory that was resumed with differences."""
        if not self._largest_difference or self.differences.get(publication.step) is not None:
            return publication
        mark = {"resumed_with_differences": self._largest_difference}
        return replace(publication, metadata=fit_for_wandb({**publication.metadata, **mark}))

    def _note(self, publication: Publication) -> None:
        # Before the checkpoint exists: a kill between the two must not leave a checkpoint without metadata.
        publication = self._marked(publication)
        run = str(self._run.id) if self._run is not None else None
        try:
            add_saved(self._directory, publication.step, publication.metadata, run)
        except CheckpointError as error:
            # The disk may still have room for the weights, which matter more.
            logger.warning("the metadata of step %d was not recorded: %s", publication.step, error)

    def _note_saved(self, saved: Saved) -> None:
        self.saved.append(saved)
        if self._publications[saved.step].metadata.get("saved_for") == "interruption":
            self._interruptions.add(saved.step)
        else:
            self._interruptions.passed_by(saved.step)
        if saved.recomputed is not None:
            self._record_difference(saved, saved.recomputed)

    def _publish_settled(self, publication: Publication, metrics: Mapping[str, Any]) -> None:
        if all(saved.step != publication.step for saved in self.saved):
            return  # the save failed, and is reported as a failure
        try:
            add_metrics(self._directory, publication.step, metrics)
        except CheckpointError as error:
            logger.warning("the metrics of step %d were not recorded: %s", publication.step, error)
        self._publish(publication)
        self.on_settled(publication.step)

    def _record_difference(self, saved: Saved, recomputed: Recomputed) -> None:
        """Record other weights than the checkpoint holds, and say so at the first step."""
        difference = recomputed.weights
        if difference is None:
            if recomputed.other_files:
                names = ", ".join(recomputed.other_files)
                logger.info("%s: %s would be written differently now; the weights are equal", saved.path, names)
            return
        add_difference(self._directory, saved.step, difference)
        self._largest_difference = max(self._largest_difference, difference.largest)
        if not self.differences:
            logger.warning(
                "%s: computed again, step %d has other weights (%s); the checkpoint stays, and the trajectory is "
                "marked as resumed with differences%s",
                saved.path,
                saved.step,
                difference,
                _cause(difference),
            )
        self.differences[saved.step] = difference

    def _sum_up_differences(self) -> None:
        if len(self.differences) > 1:
            worst = max(self.differences.values(), key=lambda difference: difference.largest)
            logger.warning(
                "%s: resumed with differences: %d steps were computed again with other weights (steps %s): %s%s",
                self._directory,
                len(self.differences),
                elided(sorted(self.differences), 100),
                worst,
                _cause(worst),
            )

    def _publish(self, publication: Publication) -> None:
        if self.publisher is not None and publication.step not in self._only_here:
            self.publisher.publish(self._marked(publication))


def _cause(difference: Difference) -> str:
    """A hint on differences that kernels which are not deterministic cannot explain."""
    if difference.share is not None and difference.share <= LARGEST_NOISE:
        return ""
    return "; this is more than kernels differ from run to run: look for other code, data order or library versions"


def _bytes_of_copy(state: ModelState) -> int:
    return sum(tensor.nbytes for tensor in {t.data_ptr(): t for t in state.tensors.values()}.values())
