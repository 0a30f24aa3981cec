"""`ScheduledCheckpointCallback`: saves a Hugging Face training at exactly the steps of a schedule.

It owns every save of the training it is given to. Step 0 is copied in `on_train_begin`, before the first update;
the scheduled steps in `on_step_end`; the last step in `on_train_end` if nothing saved it before, which is the one
event that comes after every way in which a training can end well. Where the weights are sharded over processes the
Trainer is asked to save on the same steps, and what it wrote becomes a checkpoint in `on_save`.
"""

import logging
import time
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import ConfigError, UserError
from emtoolkit.saving.output_directory import set_aside
from emtoolkit.saving.ranks import Ranks
from emtoolkit.saving.resume_state import stateful_callbacks_of
from emtoolkit.saving.resume_timing import ResumeSaves
from emtoolkit.saving.session import SavingSession, SessionSettings
from emtoolkit.saving.sharded import ShardedSaves, gathered_state, is_sharded
from emtoolkit.saving.signals import TrainingInterrupted
from emtoolkit.saving.snapshot import ModelState, model_state
from emtoolkit.saving.trainer_identity import identity_of_training, initial_weights_digest
from emtoolkit.saving.writer import OnError, Saved
from emtoolkit.schedules.resume_interval import ResumeInterval
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.storage.atomic import write_directory

logger = logging.getLogger(__name__)


class ScheduledCheckpointCallback(TrainerCallback):
    """Saves checkpoints at the steps of `schedule`, and logs each to the current W&B run if there is one.

    Args:
        schedule: the grammar (`"dense-early"`, `"0-150:25,300-:100"`), or a `Schedule`.
        output_dir: where `checkpoint-N/` appear; the Trainer's own `output_dir` by default.
        identity: what decides the weights; read off the Trainer's arguments, model and data by default.
        resume_every: how often the state for continuing is saved: `"10min"`, `"50 steps"`, `"never"`. It is saved
            on SIGINT and SIGTERM as well.
        resume_at_end: save it at the end of training too, and leave it there.
        allow_unreachable: warn about hand-written steps past the end of training, where they are an error.
        publish: log each checkpoint as a version of a W&B artifact.
        publish_timeout: how many seconds the end of training waits for W&B at most.
        max_in_flight: how many copies of the trainable weights may be in memory at a time.
        on_error: what a failed save does: `"raise"` in the training thread at the next step, or `"warn"`.
        clock: seconds; replaced in tests.

    Raises:
        ScheduleError: the schedule cannot be read (here), or asks for a step past the end (at train begin).
        ConfigError: the Trainer's arguments would delete or overwrite scheduled checkpoints (at train begin).
        CheckpointError: the output directory holds another trajectory (at train begin), or a save failed.
        TrainingInterrupted: a signal came; the state is saved.
    """

    def __init__(
        self,
        schedule: str | Schedule = "dense-early",
        *,
        output_dir: str | Path | None = None,
        identity: Identity | None = None,
        resume_every: str = "10min",
        resume_at_end: bool = False,
        allow_unreachable: bool = False,
        publish: bool = True,
        publish_timeout: float = 60.0,
        max_in_flight: int = 2,
        on_error: OnError = "raise",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.schedule = Schedule.parse(schedule) if isinstance(schedule, str) else schedule
        self.saved: list[Saved] = []
        self.failures: list[Exception] = []
        # By step, why W&B does not have it; known when training has ended.
        self.unpublished: Mapping[int, str] = {}
        self.waited_seconds = 0.0
        self._output_dir = Path(output_dir) if output_dir is not None else None
        self._identity = identity
        self._resume_saves = ResumeSaves(ResumeInterval.parse(resume_every), clock)
        self._resume_at_end = resume_at_end
        self._allow_unreachable = allow_unreachable
        self._settings = SessionSettings(max_in_flight, on_error, publish, publish_timeout)
        self._trainer: Any = None
        self._ranks = Ranks()
        self._steps: Container[int] = ()
        self._session: SavingSession | None = None
        self._sharded: ShardedSaves | None = None
        self._batch_size: int | None = None
        self._updated = False

    def follow(self, trainer: Any) -> None:
        """Keep the states of the other callbacks of `trainer` in the state for continuing.

        Needed where one of them has a state, such as `EarlyStoppingCallback`: no event tells of the others. A resume
        restores them with `restore_callback_states_from_checkpoint`.
        """
        self._trainer = trainer

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the Trainer no save of its own."""
        _own_the_saves(args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the output directory; save step 0 if scheduled and this is not a resume."""
        _own_the_saves(args)
        if warning := self.schedule.check_reachable(state.max_steps, allow_unreachable=self._allow_unreachable):
            logger.warning("%s", warning)
        self._give_up_earlier_attempt(args, state)
        self._ranks = Ranks.of_this_training()
        self._resume_saves.begin(state.global_step, self._ranks)
        self._steps = self.schedule.steps(state.max_steps)
        self._sharded = None
        self._warn_of_stateful_callbacks(state)
        try:
            self._begin(args, state, **kwargs)
        except UserError:
            self._close()
            raise

    def _begin(self, args: TrainingArguments, state: TrainerState, **kwargs: Any) -> None:
        model, scheduled, final = (
            kwargs["model"],
            state.global_step in self._steps,
            state.global_step == state.max_steps,
        )
        if is_sharded(model):
            self._sharded = ShardedSaves(self._directory(args), self._ranks, self._settings.max_in_flight)
            gathered = gathered_state(model, self._ranks)
            with self._ranks.raise_on_all():
                if state.is_world_process_zero:
                    self._sharded.session = self._open(args, state, gathered, **kwargs)
            if scheduled:
                self._sharded.adopt(state.global_step, gathered, final=final)
            gathered.forget()
            return
        # What process 0 refuses here the others must know: they would wait for it in the first step.
        with self._ranks.raise_on_all():
            if state.is_world_process_zero:
                logger.info("scheduled steps are copied in memory, and written in the background")
                session = self._open(args, state, model_state(model), **kwargs)
                session.step_in_memory = state.global_step
                if scheduled:
                    # After a resume this is compared with what is there, or fills the place of what is missing.
                    session.save(state.global_step, final=final)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the resume state of the step before, if it is due; an epoch that was resumed is ordered as it was."""
        self._between_steps(state, **kwargs)
        self._resume_saves.epoch_begins(self._directory(args))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the resume state of the step before, if it is due."""
        self._between_steps(state, **kwargs)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on the weights are of no step."""
        self._updated = True
        if self._session is not None:
            self._session.step_in_memory = None

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on the weights are those of the next step, which the Trainer has yet to count."""
        if self._session is not None and not self._session.sharded:
            self._session.step_in_memory = state.global_step + 1

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save this step if it is scheduled."""
        session, step = self._session, state.global_step
        if session is not None:
            session.disk.check()
        if self._sharded is not None:
            self._save_sharded(self._sharded, args, state, control, kwargs["model"])
        elif session is not None and step in self._steps:
            session.save(step, final=step == session.total_steps)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Make a checkpoint of what the Trainer has saved, where it was asked to."""
        if self._sharded is not None and self._sharded.saved_by_trainer(args, self._resume_saves.random_state()):
            self._stop_if_interrupted(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the newest metrics for the metadata of the next artifact."""
        if self._session is not None:
            self._session.run_metadata.update(
                {key: value for key, value in (logs or {}).items() if isinstance(value, (int, float))}
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the last step, whatever ended training, and wait until everything is on disk."""
        if self._sharded is not None:
            self._sharded.save_gathered(state.global_step, kwargs["model"], final=True)
        if self._session is not None:
            self._session.save(state.global_step, final=True)
        if self._resume_at_end and self._sharded is None:
            self._save_resume_state(state, **kwargs)
        if self._session is not None:
            self._session.disk.drain()
            self._session.end_at(state.global_step, keep_resume_state=self._resume_at_end)
        self._close()

    def save_after_failure(self) -> None:
        """Save the last whole step of a training that an exception ended, and wait for the disk.

        For programs that call `Trainer.train()`: no event of the Trainer comes after an exception. Sharded weights
        are not saved by it, as the other processes may be gone.
        """
        session = self._session
        if session is not None:
            if session.step_in_memory is not None:
                session.save(session.step_in_memory, final=False)
            self._close()

    def _between_steps(self, state: TrainerState, **kwargs: Any) -> None:
        """Save the resume state if it is due, and stop if a signal came; in every process."""
        if self._sharded is not None or not self._resume_saves.is_due(state.global_step):
            return
        if self._session is not None and self._resume_saves.interrupted_by:
            self._session.save(state.global_step, final=False)
        self._save_resume_state(state, **kwargs)
        self._stop_if_interrupted(state.global_step)

    def _save_resume_state(self, state: TrainerState, *, optimizer: Any, lr_scheduler: Any, **kwargs: Any) -> None:
        random_states = self._ranks.gather(self._resume_saves.random_state())
        if self._session is not None:
            callbacks = stateful_callbacks_of(self._trainer)
            self._session.save_resume_state(optimizer, lr_scheduler, state, random_states, callbacks)

    def _save_sharded(
        self, saves: ShardedSaves, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any
    ) -> None:
        """The Trainer saves when this event is over, so that here it is decided for what."""
        step = state.global_step
        resume = self._resume_saves.is_due(step) if step < state.max_steps else self._resume_at_end
        scheduled = step in self._steps or bool(self._resume_saves.interrupted_by)
        if not saves.save(args, control, step, model, scheduled=scheduled, resume=resume):
            self._stop_if_interrupted(step)

    def _stop_if_interrupted(self, step: int) -> None:
        if number := self._resume_saves.interrupted_by:
            self._close()
            raise TrainingInterrupted(step, number)

    def _give_up_earlier_attempt(self, args: TrainingArguments, state: TrainerState) -> None:
        """End a training that came to no end. After `auto_find_batch_size` this one is another trajectory."""
        earlier, self._batch_size = self._batch_size, state.train_batch_size
        was_open, trained = self._session is not None, self._updated
        self._updated = False
        self._close()
        if not (was_open and args.auto_find_batch_size and earlier != state.train_batch_size):
            return
        aside = set_aside(self._directory(args))
        logger.warning(
            "memory ran out: the batch size is now %d, and %s holds the attempt before", state.train_batch_size, aside
        )
        if trained:
            logger.warning(
                "memory ran out after a step: the Trainer goes on from the weights as they are, so that step 0 is not "
                "the beginning; for a trajectory from there, start again with per_device_train_batch_size=%d",
                state.train_batch_size,
            )

    def _warn_of_stateful_callbacks(self, state: TrainerState) -> None:
        names = sorted({str(name) for name in state.stateful_callbacks or ()} - {TrainerControl.__name__})
        if names and self._trainer is None:
            logger.warning(
                "%s: a resume would begin with a new one; call follow(trainer) of the ScheduledCheckpointCallback "
                "before trainer.train(), and set restore_callback_states_from_checkpoint",
                ", ".join(names),
            )

    def _open(self, args: TrainingArguments, state: TrainerState, weights: ModelState, **kwargs: Any) -> SavingSession:
        directory = self._directory(args)
        identity = self._identity
        if identity is None:
            initial_weights = initial_weights_digest(weights)
            record = TrajectoryRecord.read_if_any(directory)
            if state.global_step > 0 and record is not None:
                # A resumed model is not the initial one any more; what that was stands in the record.
                initial_weights = str(record.fingerprinted.get("initial_weights"))
            dataset = kwargs["train_dataloader"].dataset
            identity = identity_of_training(args, state, kwargs["model"], dataset, initial_weights)
        session = SavingSession(
            directory,
            weights,
            identity,
            self.schedule.steps(state.max_steps),
            state.max_steps,
            str(self.schedule),
            self._settings,
            sharded=self._sharded is not None,
        )
        self._session = session
        self.saved, self.failures = session.saved, session.disk.failures
        tokenizer = kwargs.get("processing_class")
        if tokenizer is not None and not (directory / "tokenizer").exists():
            write_directory(directory / "tokenizer", tokenizer.save_pretrained, 0)
        return session

    def _directory(self, args: TrainingArguments) -> Path:
        return (self._output_dir or Path(str(args.output_dir))).absolute()

    def _close(self) -> None:
        # The other processes may have had the signal first. It then comes here only now, while what they stopped for
        # is written.
        interrupted = self._resume_saves.interrupted_by
        if not interrupted:
            self._resume_saves.end()
        self._ranks.close()
        self._ranks = Ranks()
        session, self._session = self._session, None
        try:
            if session is not None:
                self.waited_seconds += session.waited_seconds
                session.close()
                self.unpublished = session.unpublished
        finally:
            if interrupted:
                self._resume_saves.end()


def _own_the_saves(args: TrainingArguments) -> None:
    """Turn off every save of the Trainer's own, and refuse arguments that would delete scheduled checkpoints."""
    if args.load_best_model_at_end:
        raise ConfigError(
            "load_best_model_at_end: it needs the Trainer's own saves and puts other weights into the model at the "
            "end, so it cannot go with a schedule; remove it"
        )
    if args.save_total_limit is not None:
        raise ConfigError(f"save_total_limit: {args.save_total_limit} would delete scheduled checkpoints; remove it")
    if args.save_strategy == SaveStrategy.BEST:
        raise ConfigError("save_strategy: 'best' overrides a schedule at every evaluation; set it to 'no'")
    if args.save_strategy != SaveStrategy.NO:
        logger.warning(
            "save_strategy is now 'no' (it was '%s'): the schedule owns every save of this training",
            SaveStrategy(args.save_strategy).value,
        )
        args.save_strategy = SaveStrategy.NO
