"""`ScheduledCheckpointCallback`: saves a Hugging Face training at exactly the steps of a schedule.

The callback owns every save of its training. Step 0 is saved in `on_train_begin`, before the first update, scheduled
steps in `on_step_end`, and the last step in `on_train_end` if it is not saved yet: the only event after every training
that ends without an exception. How a step is saved depends on the model: `LocalSaving` copies a model that each process
holds completely, `ShardedSaving` lets the Trainer save a model that is spread over processes.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emtoolkit.checkpoints.layout import TRAINER_STATE
from emtoolkit.checkpoints.manifest import TrajectorySeal
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import DivergedError, UserError
from emtoolkit.saving.identity_for import identity_for
from emtoolkit.saving.local import LocalSaving
from emtoolkit.saving.model_identity import frozen_digest
from emtoolkit.saving.model_state import ModelState
from emtoolkit.saving.output_directory import OutputDirectory
from emtoolkit.saving.own_loops import StepCount, begun, known_objects, warn_of_missed_steps
from emtoolkit.saving.ranks import Ranks
from emtoolkit.saving.resume_from import resume_checkpoint
from emtoolkit.saving.resume_state import check_resume_state, stateful_callbacks_of, trainer_state_json
from emtoolkit.saving.resume_timing import ResumeTiming
from emtoolkit.saving.session import SavingSession
from emtoolkit.saving.sharded import ShardedSaving, is_sharded
from emtoolkit.saving.signals import TrainingInterrupted
from emtoolkit.saving.smaller_batch import set_attempt_aside
from emtoolkit.saving.strategy import SavingSetup, SavingStrategy, TrainerEvent
from emtoolkit.saving.trainer_arguments import own_the_saves, warn_of_stateful_callbacks
from emtoolkit.saving.trainer_identity import running_trainer
from emtoolkit.saving.training_call import has_begun, watch_trainers
from emtoolkit.saving.writer import Saved
from emtoolkit.schedules.save_options import OnError, OnNan, SaveOptions
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.storage.atomic import write_directory, write_file

logger = logging.getLogger(__name__)


class ScheduledCheckpointCallback(TrainerCallback):
    """Saves checkpoints at the steps of `schedule`, and logs each to the current W&B run if there is one.

    Args:
        schedule: the grammar (`"dense-early"`, `"0-150:25,300-:100"`), a list of steps, or a `Schedule`.
        output_dir: the directory of the `checkpoint-N/`; by default the Trainer's own `output_dir`.
        identity: everything that decides the weights; by default read from the Trainer's arguments, model and data.
        resume_every: how often the resume state is saved: `"10min"`, `"50 steps"`, `"never"`. A signal saves it, too.
        signals: the signals that save the state and stop the training, such as `["SIGUSR1"]`, besides SIGINT and
            SIGTERM; by default SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU where the program neither ignores nor handles them.
        resume_keep: the schedule of resume states that stay besides the newest, such as `"every:100"`.
        resume_at_end: save the resume state at the end of training too, and keep it.
        allow_unreachable: warn about steps written out by hand past the end of training, instead of raising an error.
        publish: log each checkpoint as a version of a W&B artifact.
        publish_timeout: how many seconds the end of training waits for W&B at most.
        max_in_flight: how many copies of the trainable weights may be in memory at the same time.
        on_error: what a failed save does: `"raise"` in the training thread at the next step, or `"warn"`.
        on_nan: what weights that are not finite do: `"stop"` with a `DivergedError`, or `"continue"`.
        overlap: copy the weights while the next step computes, where nothing else may change them.
        also_save: steps to save besides those of the schedule, such as damaged checkpoints.
        resume_state_is_intact: the resume checkpoint was compared with its digests already, so a resume does not.
        clock: the current time in seconds; tests replace it.

    Raises:
        ScheduleError: the schedule cannot be read (here), or asks for a step past the end (when training begins).
        ConfigError: an option has no meaning (here), or the Trainer's arguments would delete or overwrite scheduled
            checkpoints (when training begins).
        CheckpointError: the output directory holds another trajectory (when training begins), or a save failed.
        TrainingInterrupted: a signal came; the state is saved.
    """

    _running_in: Path | None = None  # absolute: a program may change its working directory during a training

    def __init__(
        self,
        schedule: str | Schedule | Iterable[int] = "dense-early",
        *,
        output_dir: str | Path | None = None,
        identity: Identity | None = None,
        resume_every: str = SaveOptions.resume_every,
        signals: Sequence[str] | None = SaveOptions.signals,
        resume_keep: str = SaveOptions.resume_keep,
        resume_at_end: bool = SaveOptions.resume_at_end,
        allow_unreachable: bool = SaveOptions.allow_unreachable,
        publish: bool = SaveOptions.publish,
        publish_timeout: float = SaveOptions.publish_timeout,
        max_in_flight: int = SaveOptions.max_in_flight,
        on_error: OnError = SaveOptions.on_error,
        on_nan: OnNan = SaveOptions.on_nan,
        overlap: bool = SaveOptions.overlap,
        also_save: Collection[int] = (),
        resume_state_is_intact: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.schedule = Schedule.of_argument(schedule)
        self.saved: list[Saved] = []
        """The checkpoints that are on disk, in the order of their steps."""
        self.failures: list[Exception] = []
        """The errors of the saves that failed."""
        self.unpublished: Mapping[int, str] = {}
        """The steps that W&B lacks, each with the reason; complete when training has ended."""
        self.ended_at: int | None = None
        """The step at which training ended, once all checkpoints are on disk."""
        self.waited_seconds = 0.0
        """How long the training thread waited for saves, in seconds."""
        self.trainings = 0
        """The number of trainings that have begun."""
        self._options = SaveOptions(
            resume_every=resume_every,
            signals=signals,
            resume_keep=resume_keep,
            resume_at_end=resume_at_end,
            allow_unreachable=allow_unreachable,
            publish=publish,
            publish_timeout=publish_timeout,
            max_in_flight=max_in_flight,
            on_error=on_error,
            on_nan=on_nan,
            overlap=overlap,
        )
        self._also_save = frozenset(also_save)
        self._resume_state_is_intact = resume_state_is_intact
        self._output_dir = Path(output_dir) if output_dir is not None else None
        self._identity = identity
        self._timing = ResumeTiming(self._options, clock)
        self._trainer: Any = None
        self._ranks = Ranks()
        self._strategy: SavingStrategy | None = None
        # Open in process 0 only.
        self._session: SavingSession | None = None
        self._batch_size: int | None = None
        self._frozen_digest, self._updated, self._count = "", False, StepCount()
        watch_trainers(self)

    def follow(self, trainer: Any) -> None:
        """Keep the states of the other callbacks of `trainer` in the resume state.

        Needed if a callback has a state, such as `EarlyStoppingCallback`: no event passes the other callbacks on. A
        resume restores the states with `restore_callback_states_from_checkpoint`.
        """
        self._trainer = trainer

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Turn off the Trainer's own saves."""
        own_the_saves(args)
        watch_trainers()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the output directory; save the current step if scheduled, which is step 0 unless this is a resume."""
        has_begun(self)
        event = TrainerEvent(args, state, control, known_objects(kwargs, self._trainer or running_trainer(self)))
        own_the_saves(args)
        self._count.begin(state)
        allow_unreachable = self._options.allow_unreachable
        if warning := self.schedule.check_reachable(state.max_steps, allow_unreachable=allow_unreachable):
            logger.warning("%s", warning)
        self._end_earlier_attempt(event)
        self._running_in = self._directory(args)
        if self._trainer is None:
            warn_of_stateful_callbacks(state)
        self._ranks = Ranks.of_this_training()
        self._timing.begin(state.global_step, self._ranks, self._directory(args), state.max_steps)
        with self._closed_on(BaseException):
            if self._identity is None:
                self._frozen_digest = frozen_digest(event.model, self._ranks, sharded=is_sharded(event.model))
            if event.step > 0 and not self._resume_state_is_intact:
                with self._ranks.raise_on_all():
                    if state.is_world_process_zero:
                        check_resume_state(self._directory(args), event.step)
            strategy = ShardedSaving if is_sharded(event.model) else LocalSaving
            self._strategy = strategy(self._setup(event), event)
        self._note_metrics(state, {"epoch": state.epoch})

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the resume state of the step before if it is due; shuffle an epoch that is resumed as it was."""
        self.on_step_begin(args, state, control, **kwargs)
        self._timing.epoch_begins(self._directory(args))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Settle the metadata of the step before, and save its resume state if that is due."""
        if self._session is not None:
            self._session.settle()
        with self._closed_on(TrainingInterrupted):
            self._active.between_steps(TrainerEvent(args, state, control, kwargs))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From now on the weights belong to no step."""
        self._updated = True
        self._active.before_update()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From now on the weights are those of the next step, which the Trainer has not counted yet."""
        self._active.after_update(TrainerEvent(args, state, control, kwargs))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save this step if it is scheduled."""
        self._count.step_ended(state.global_step)
        self._note_metrics(state, {"epoch": state.epoch})
        with self._closed_on(TrainingInterrupted):
            self._active.step_ended(TrainerEvent(args, state, control, kwargs))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Finish the copy of the last step: other weights may be loaded after a training."""
        self._active.finish_copy()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Make a checkpoint of a save that the Trainer was asked for."""
        with self._closed_on(TrainingInterrupted):
            self._active.trainer_saved(TrainerEvent(args, state, control, kwargs))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Keep the metrics of this step for the metadata of its checkpoint."""
        self._note_metrics(state, logs or {})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the last step, whatever ended training, and wait until everything is on disk."""
        if self._session is not None:
            # Where other tools expect the state of a training that has ended.
            values = trainer_state_json(state, stateful_callbacks_of(self._trainer))
            write_file(self._directory(args) / TRAINER_STATE, values.encode())
        self._active.training_ended(TrainerEvent(args, state, control, kwargs))
        self.ended_at = state.global_step
        if self._session is not None and not self.failures:
            steps = self._also_save.union(self.schedule.known_steps(state.max_steps))
            warn_of_missed_steps(self._directory(args), steps, self._count.first, state.global_step)
        self._close()

    def resume_from(self, trainer: Any, asked: str | bool | None) -> str | bool | None:
        """The resume state that `trainer.train(resume_from_checkpoint=asked)` continues from.

        Raises:
            CheckpointError: there is none where `asked` says; the text says where one is.
        """
        return resume_checkpoint(self._directory(trainer.args), asked)

    def training_failed(self, trainer: Any, error: BaseException) -> None:
        """Save the last complete step of a training that `error` ended in `Trainer.train`, and end the saving.

        Nothing is saved while the weights are those of no step, and no sharded weights, because the other processes may
        be gone. The signal handlers are restored, the directory is released, and the threads have ended afterwards.
        """
        try:
            self._save_and_close(error)
        except (UserError, OSError, RuntimeError) as problem:
            # The training raises `error`, and this one is often its consequence.
            if not (isinstance(error, DivergedError) and isinstance(problem, DivergedError)):
                logger.warning("the last step could not be saved after the training failed: %s", problem)

    def training_returned(self, trainer: Any) -> None:
        """End a training whose loop has sent no `on_train_end`."""
        if self._strategy is not None:
            self.on_train_end(trainer.args, trainer.state, trainer.control, **known_objects({}, trainer))

    def save_after_failure(self) -> None:
        """Save the last complete step of a training that an exception ended, and wait for the disk.

        For training loops of one's own: `Trainer.train` has done this before it raises its exception.
        """
        self._save_and_close(None)

    def _save_and_close(self, error: BaseException | None) -> None:
        try:
            if self._session is not None and self._strategy is not None:
                self._strategy.training_failed(error)
        finally:
            self._close()

    def _note_metrics(self, state: TrainerState, logs: Mapping[str, Any]) -> None:
        if self._session is not None:
            self._session.metrics.note(state.global_step, logs)

    @property
    def _active(self) -> SavingStrategy:
        return begun(self._strategy)

    @contextmanager
    def _closed_on(self, kind: type[BaseException]) -> Iterator[None]:
        """Close everything before an error of this `kind` leaves the block."""
        try:
            yield
        except kind:
            self._close()
            raise

    def _setup(self, event: TrainerEvent) -> SavingSetup:
        return SavingSetup(
            directory=self._directory(event.args),
            schedule=self.schedule,
            also_save=self._also_save,
            total_steps=event.state.max_steps,
            options=self._options,
            ranks=self._ranks,
            timing=self._timing,
            open_session=partial(self._open_session, event),
            stateful_callbacks=lambda: stateful_callbacks_of(self._trainer),
            trainer=lambda: self._trainer or running_trainer(self),
            callback=self,
        )

    def _open_session(self, event: TrainerEvent, weights: ModelState) -> SavingSession:
        directory = self._directory(event.args)
        trainer = self._trainer or running_trainer(self)
        identity = self._identity or identity_for(directory, event, trainer, self._frozen_digest, weights.tensors)
        seal = TrajectorySeal(OutputDirectory.open(directory).identity_here(identity), event.state.max_steps)
        self._session = session = SavingSession(directory, weights, seal, self.schedule, self._options)
        self.saved, self.failures = session.saved, session.disk.failures
        tokenizer = event.objects.get("processing_class")
        if tokenizer is not None and not (directory / "tokenizer").exists():
            write_directory(directory / "tokenizer", tokenizer.save_pretrained, 0)
        return session

    def _end_earlier_attempt(self, event: TrainerEvent) -> None:
        """Close a training that did not end. After `auto_find_batch_size` the new attempt is another trajectory."""
        earlier, self._batch_size = self._batch_size, event.state.train_batch_size
        directory, was_open = self._directory(event.args), self._session is not None
        updated, self._updated = self._updated, False
        self._close()
        if was_open and event.args.auto_find_batch_size and earlier != self._batch_size:
            set_attempt_aside(directory, event.state.train_batch_size, updated=updated)

    def _directory(self, args: TrainingArguments) -> Path:
        return self._running_in or (self._output_dir or Path(str(args.output_dir))).absolute()

    def _close(self) -> None:
        # Other processes may have had the signal first. In this one it may arrive while the session is closed, where
        # it must not end the process: the handlers are restored after that.
        interrupted = self._timing.interrupted_by
        if not interrupted:
            self._timing.end()
        self._ranks.close()
        self._ranks = Ranks()
        session, strategy = self._session, self._strategy
        self._session = self._strategy = self._running_in = None
        try:
            if strategy is not None:
                self.waited_seconds += strategy.waited_seconds
            if session is not None:
                session.close(interrupted=bool(interrupted))
                self.unpublished = session.unpublished
        finally:
            if interrupted:
                self._timing.end()
