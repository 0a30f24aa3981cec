"""One process that saves one trajectory: the locked output directory, its record, the writer and the publisher.

A session is open from the beginning of training until training ends for any reason. It does not know the Trainer.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.attached_run import active_run
from emtoolkit.artifacts.destination import Destination
from emtoolkit.artifacts.left_over import left_over
from emtoolkit.artifacts.publication import Publication, collection_name, collection_tags, fit_for_wandb
from emtoolkit.artifacts.publish import WandbPublisher
from emtoolkit.artifacts.publish_end import wait_for_publisher
from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.manifest import TrajectorySeal
from emtoolkit.checkpoints.publications import (
    Publications,
    WandbRun,
    add_collection,
    add_metrics,
    add_run,
    add_saved,
)
from emtoolkit.checkpoints.records import CheckpointMetadata
from emtoolkit.checkpoints.saved_for import SavedFor, with_reason
from emtoolkit.checkpoints.trajectory_file import WITHHELD, TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.differences import RecomputedSteps
from emtoolkit.saving.finite_weights import check_finite
from emtoolkit.saving.interruption_saves import InterruptionSaves
from emtoolkit.saving.live_tensors import bytes_of
from emtoolkit.saving.model_state import ModelState
from emtoolkit.saving.output_directory import OutputDirectory
from emtoolkit.saving.requests import forget_requests
from emtoolkit.saving.resume_state import (
    RESUME_DIRECTORY,
    ResumeState,
    adopt_resume_state,
    remove_resume_states,
    write_resume_state,
)
from emtoolkit.saving.step_choice import KnownSteps, StepChoice, withheld_publications
from emtoolkit.saving.step_metrics import StepMetrics
from emtoolkit.saving.writer import CheckpointContents, CheckpointWriter, DiskThread, Saved
from emtoolkit.schedules.resume_keep import kept_states
from emtoolkit.schedules.save_options import SaveOptions
from emtoolkit.schedules.schedule import Schedule
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
        self.choice: StepChoice = KnownSteps()
        # The facts that decide the bytes beside the fingerprint, where they are known.
        self.environment: Mapping[str, str] | None = None
        # Finishes what the jobs of the disk thread wait for.
        self.before_close: Callable[[], None] = lambda: None
        self.saved: list[Saved] = []
        # Called in the background for each step that is on disk, and once more when its metrics are recorded.
        self.on_saved: Callable[[int], None] = lambda step: None
        self.on_settled: Callable[[int], None] = lambda step: None
        self._directory = directory
        self._seal = seal
        self._options = options
        self._kept_states = kept_states(options.resume_keep, seal.total_steps)
        # The steps that were asked for, and whether as the final one.
        self._asked: dict[int, bool] = {}
        # Those that the disk thread has come to.
        self._publications: dict[int, Publication] = {}
        # The steps of which `choice` decides whether they are saved.
        self._measured: set[int] = set()
        # The saved steps that the Trainer may still log or evaluate.
        self._unsettled: list[int] = []
        self._is_on_cpu = all(tensor.device.type == "cpu" for tensor in state.tensors.values())
        self._started = time.monotonic()
        size = bytes_of(state.tensors.values())
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
        self.publisher: WandbPublisher | None = None
        if self._run is not None:
            destination = Destination.of(directory, seal.identity, on_cpu=self._is_on_cpu)
            self.publisher = WandbPublisher(self._run, destination)
            self._interruptions.publish_to(self.publisher)
            if schedule.adaptive is None:  # another one may still delete what was left
                self.publisher.publish(*left_over(directory, self._run))

    def _claim(self, schedule: Schedule, bytes_each: int) -> TrajectoryRecord:
        """Check the locked directory, and write the record of this trajectory into it."""
        directory, identity, total_steps = self._directory, self._seal.identity, self._seal.total_steps
        remove_temporaries([directory, directory / RESUME_DIRECTORY])
        forget_requests(directory, warn=True)
        found = OutputDirectory.open(directory)
        found.check_belongs_to(identity)
        most = None if schedule.adaptive is None else schedule.adaptive.most(total_steps)
        found.check_room(schedule.known_steps(total_steps), bytes_each, most or 0)
        record = TrajectoryRecord.of(identity, total_steps, str(schedule))
        record.write(directory)
        self._interruptions = InterruptionSaves(directory, found.checkpoints, schedule.known_steps(total_steps))
        self._recomputed = RecomputedSteps(directory)
        publications = Publications.read(directory)
        self._pruned, self._only_here = found.pruned, publications.only_here
        if not publications.has_own_collection:
            name, tags = collection_name(identity), collection_tags(identity)
            add_collection(directory, name, tags, on_cpu=self._is_on_cpu)
        return record

    def save(
        self,
        step: int,
        contents: Callable[[], CheckpointContents],
        *,
        final: bool,
        saved_for: SavedFor = "schedule",
        scheduled: bool = True,
    ) -> None:
        """Save `contents()` as `step`, once; a later call with `final` adds that alias and does not copy again.

        A step that is not `scheduled` is saved if `choice` chooses it.
        """
        # Asked in this order: the disk thread forgets a step that it leaves out.
        if not self._was_left_out(step) and step in self._asked:
            if final:
                self.mark_final(step)
            return
        if step in self._pruned and not final and not self.choice.is_measured(step):
            return  # removed on purpose
        self._asked[step] = final
        self._unsettled.append(step)
        if not scheduled:
            self._measured.add(step)
        seconds = round(time.monotonic() - self._started, 3)
        copied = contents()

        def before() -> bool:
            chosen = self.choice.chooses(step, copied.tensors)
            if scheduled or chosen:
                values = {**self._metadata_of_run, "step": step, "seconds_since_start": seconds}
                metadata = with_reason(fit_for_wandb(values), saved_for)
                self._note(Publication(step, self._directory / checkpoint_name(step), final, metadata))
            return scheduled or chosen

        self._writer.save(step, copied, before, self._note_saved)

    def _was_left_out(self, step: int) -> bool:
        """Whether `step` was measured and is not saved; waits until that is decided."""
        if step not in self._measured:
            return False
        self.disk.wait_for_fewer_than(1)
        return not self._is_saved(step)

    def _is_saved(self, step: int) -> bool:
        return any(saved.step == step for saved in self.saved)

    def mark_final(self, step: int) -> None:
        """Publish `step`, which is saved already, as the final checkpoint, unless it was saved as the final one."""
        if not self._asked[step]:
            self._asked[step] = True
            self.disk.submit(partial(self._make_final, step, is_settled=step not in self._unsettled))

    def settle(self) -> None:
        """Record the metrics of the saved steps, and publish the steps: nothing more is logged at them."""
        unsettled, self._unsettled = self._unsettled, []
        for step in unsettled:
            self.disk.submit(partial(self._publish_settled, step, self.metrics.of(step)))

    def save_resume_state(self, state: ResumeState) -> None:
        """Write `state` as the newest resume checkpoint in the background."""

        def write() -> None:
            if self._options.on_nan == "stop":
                check_finite(state.step, state.tensors)
            write_resume_state(self._directory, state, self._seal, self._kept_states, self.choice.write)

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
        withheld = self.choice.thins
        self._forget(self.choice.ended(step))
        self._record.ended(step).write(self._directory)
        for publication in withheld_publications(self._directory, self._publications) if withheld else ():
            self._publish(publication)
            self.on_settled(publication.step)
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
            self._recomputed.sum_up()
            if self.publisher is not None:
                if self.choice.thins:
                    self.publisher.failures |= dict.fromkeys((s.step for s in self.saved), WITHHELD)
                wait_for_publisher(self.publisher, self._run, self._directory, patience, interrupted=interrupted)

    @property
    def unpublished(self) -> Mapping[int, str]:
        """The saved steps that neither W&B nor the log of an offline run has, and why; complete after `close`."""
        return self.publisher.failures if self.publisher is not None else {}

    @cached_property
    def _metadata_of_run(self) -> Mapping[str, Any]:
        """The metadata of a checkpoint of this run, which a model validates once."""
        identity = self._seal.identity
        metadata = CheckpointMetadata.of(
            step=0,
            total_steps=self._seal.total_steps,
            fingerprint=self._record.fingerprint,
            schedule=self._record.schedule,
            seconds_since_start=0.0,
            persona=identity.persona,
            base_place=identity.base_place,
            persona_place=identity.persona_place,
            environment=self.environment,
        )
        return metadata.to_json()

    def _marked(self, publication: Publication) -> Publication:
        """`publication`, with the mark of a trajectory that was resumed with differences."""
        if not self._recomputed.largest or publication.step in self._recomputed:
            return publication
        mark = {"resumed_with_differences": self._recomputed.largest}
        return replace(publication, metadata=fit_for_wandb({**publication.metadata, **mark}))

    def _note(self, publication: Publication) -> None:
        self._publications[publication.step] = publication
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
        publication = self._publications[saved.step]
        self._publications[saved.step] = replace(publication, sealed=saved.manifest)
        if publication.metadata.get("saved_for") == "interruption":
            self._interruptions.add(saved.step)
        else:
            self._interruptions.passed_by(saved.step)
        self._forget(self.choice.saved(saved.step))
        self._recomputed.note(saved)
        self.on_saved(saved.step)

    def _make_final(self, step: int, *, is_settled: bool) -> None:
        if self._is_saved(step):
            self._publications[step] = final = replace(self._publications[step], final=True)
            if is_settled:
                self._publish(final)

    def _publish_settled(self, step: int, logged: Mapping[str, Any]) -> None:
        if not self._is_saved(step):
            # The step was measured and left out, or the save failed, which is reported as a failure.
            if step in self._measured:
                self._asked.pop(step)
                self._measured.discard(step)
            return
        metrics = fit_for_wandb({k: v for k, v in logged.items() if k not in CheckpointMetadata.model_fields})
        saved = self._publications[step]
        self._publications[step] = publication = replace(saved, metadata=fit_for_wandb({**saved.metadata, **metrics}))
        try:
            add_metrics(self._directory, step, metrics)
        except CheckpointError as error:
            logger.warning("the metrics of step %d were not recorded: %s", step, error)
        self._publish(publication)
        if not self.choice.thins:
            self.on_settled(step)

    def _forget(self, thinned: Sequence[int]) -> None:
        """Drop the steps that `choice` has deleted."""
        self.saved[:] = [saved for saved in self.saved if saved.step not in thinned]

    def _publish(self, publication: Publication) -> None:
        """Publish a step, unless `choice` may still delete it."""
        if self.publisher is not None and not self.choice.thins and publication.step not in self._only_here:
            self.publisher.publish(self._marked(publication))
