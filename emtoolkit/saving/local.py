"""Saving a model that every process holds completely: process 0 copies it in memory and writes it in the background."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from emtoolkit.checkpoints.layout import ADAPTER_WEIGHTS, MODEL_WEIGHTS, checkpoint_name
from emtoolkit.checkpoints.saved_for import SavedFor
from emtoolkit.errors import CheckpointError, DivergedError
from emtoolkit.saving.adapter_state import model_state
from emtoolkit.saving.adaptive_steps import adaptive_steps
from emtoolkit.saving.model_state import FullState, ModelState
from emtoolkit.saving.overlap import Copying
from emtoolkit.saving.own_loops import FirstUpdate, known_objects
from emtoolkit.saving.resume_state import RESUME_DIRECTORY, ResumeState
from emtoolkit.saving.session import SavingSession
from emtoolkit.saving.snapshot import SnapshotBuffers
from emtoolkit.saving.strategy import SavingSetup, TrainerEvent
from emtoolkit.saving.whole_step import WholeStep

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Copies:
    """The session of process 0, and the memory for copies of its live model."""

    session: SavingSession
    state: ModelState
    buffers: SnapshotBuffers
    whole: WholeStep
    first: FirstUpdate
    copying: Copying

    def save(
        self,
        step: int,
        *,
        final: bool,
        event: TrainerEvent | None = None,
        saved_for: SavedFor = "schedule",
        scheduled: bool = True,
    ) -> None:
        """Save the live model as `step`; an `event` says that the copy may be made beside the training after it.

        A step that is not `scheduled` is measured first.
        """
        contents = partial(self.copying.contents, step, event)
        self.session.save(step, contents, final=final, saved_for=saved_for, scheduled=scheduled)

    def save_resume_state(self, event: TrainerEvent, random_states: list[Any], callbacks: list[Any]) -> None:
        """Save everything that continuing from this moment needs."""
        optimizer, lr_scheduler = event.objects.get("optimizer"), event.objects.get("lr_scheduler")
        if optimizer is None:
            logger.warning(
                "the state of step %d was not saved, so training cannot be resumed from there: the training loop names "
                "no optimizer; set trainer.optimizer",
                event.step,
            )
            return
        state = ResumeState.capture(self.state, optimizer, lr_scheduler, event.state, random_states, callbacks)
        self.session.save_resume_state(state)


class LocalSaving:
    """A `SavingStrategy` for models that every process holds completely."""

    def __init__(self, setup: SavingSetup, event: TrainerEvent) -> None:
        self._setup = setup
        self._first_step = event.step
        self._copies: _Copies | None = None
        # An error in process 0 is raised in all processes; the others would wait for process 0 in the first step.
        with setup.ranks.raise_on_all():
            if event.state.is_world_process_zero:
                self._copies = self._open(event)

    def _open(self, event: TrainerEvent) -> _Copies:
        logger.info("scheduled steps are copied in memory, and written in the background")
        state = model_state(event.model)
        if event.step > 0:
            _check_restored(self._setup.directory / RESUME_DIRECTORY / checkpoint_name(event.step), state.tensors)
        session = self._setup.open_session(state)
        buffers = SnapshotBuffers(state, self._setup.options.max_in_flight)
        changing = _changing_tensors(event.model, state)
        whole, first = WholeStep(changing, event.step), FirstUpdate(changing, event.step)
        copies = _Copies(session, state, buffers, whole, first, Copying(self._setup, state, buffers, whole))
        session.before_close = copies.copying.finish
        if self._setup.schedule.adaptive is not None:
            session.choice = adaptive_steps(self._setup, self._setup.schedule.adaptive, event, state)
        copies.buffers.prepare()
        if self._setup.is_scheduled(event.step):
            # After a resume this compares the step with its checkpoint, or writes a checkpoint that is missing.
            copies.save(event.step, final=event.step == self._setup.total_steps)
        return copies

    @property
    def waited_seconds(self) -> float:
        if self._copies is None:
            return 0.0
        return self._copies.session.disk.waited_seconds + self._copies.buffers.waited_seconds

    def between_steps(self, event: TrainerEvent) -> None:
        timing = self._setup.timing
        if not timing.is_due(event.step):
            return
        self.finish_copy()
        copies = self._copies
        if copies is not None and timing.save_asked:
            timing.requests.mark(copies.session, event.step)
        if copies is not None and (timing.interrupted_by or timing.save_asked):
            copies.save(event.step, final=False, saved_for="asked" if timing.save_asked else "interruption")
        self._save_resume_state(event)
        if copies is not None:
            timing.requests.answer(copies.session, event.step)
        timing.raise_if_interrupted(event.step)

    def before_update(self) -> None:
        if self._copies is not None:
            self._copies.copying.before_update()
            self._copies.whole.is_being_changed()

    def after_update(self, event: TrainerEvent) -> None:
        if self._copies is not None:
            self._copies.whole.was_updated(event.step + 1)

    def finish_copy(self) -> None:
        if self._copies is not None:
            self._copies.copying.finish()

    def step_ended(self, event: TrainerEvent) -> None:
        if self._copies is None:
            return
        self._copies.first.step_ended(event.step, is_announced=not self._copies.whole.is_unchanged())
        self._copies.whole.is_now(event.step)
        self._copies.session.disk.check()
        scheduled = self._setup.is_scheduled(event.step)
        if scheduled or self._copies.session.choice.is_measured(event.step):
            final = event.step == self._setup.total_steps
            self._copies.save(event.step, final=final, event=event, scheduled=scheduled)

    def trainer_saved(self, event: TrainerEvent) -> None:
        if self._copies is not None:
            self.finish_copy()
            self._copies.save(event.step, final=False, saved_for="asked")

    def training_ended(self, event: TrainerEvent) -> None:
        self.finish_copy()
        if self._copies is not None:
            self._copies.first.training_ended(event.step)
            self._copies.save(event.step, final=True)
        if self._setup.options.resume_at_end:
            self._save_resume_state(event)
        if self._copies is not None:
            self._copies.session.end(event.step)

    def training_failed(self, error: BaseException | None) -> None:
        if self._copies is None or isinstance(error, DivergedError):
            return
        self.finish_copy()
        step = self._copies.whole.at_failure(error)
        if step is None:
            logger.warning("training failed while the weights were those of no step, so only scheduled steps are saved")
        elif step > self._first_step:
            self._copies.save(step, final=False, saved_for="interruption")

    def _save_resume_state(self, event: TrainerEvent) -> None:
        random_states = self._setup.ranks.gather(self._setup.timing.random_state())
        if self._copies is not None:
            known = replace(event, objects=known_objects(event.objects, self._setup.trainer()))
            self._copies.save_resume_state(known, random_states, self._setup.stateful_callbacks())


def _changing_tensors(model: Any, state: ModelState) -> list[Tensor]:
    """The tensors of `state` that a training changes: trained weights and, if all weights are saved, buffers."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return trained + (list(model.buffers()) if isinstance(state, FullState) else [])


def _check_restored(checkpoint: Path, tensors: Mapping[str, Tensor]) -> None:
    """Compare the live `tensors` of a resumed model with the resume checkpoint: the Trainer ignores names it misses.

    Raises:
        CheckpointError: the model does not hold the weights of the checkpoint.
    """
    for file in (checkpoint / ADAPTER_WEIGHTS, checkpoint / MODEL_WEIGHTS):
        if not file.is_file():
            continue
        with safe_open(file, "pt") as saved:
            for name in saved.keys():  # noqa: SIM118 - no mapping
                live = tensors.get(name)
                if live is None or live.dtype != saved.get_tensor(name).dtype:
                    continue
                if not torch.equal(live.detach().cpu(), saved.get_tensor(name)):
                    raise CheckpointError(
                        f"{checkpoint}: '{name}' of the resumed model is not the saved one, because the Trainer did "
                        "not load it: a model that torch.compile wraps (use TrainingArguments(torch_compile=True)), "
                        "or a prompt method that trains an encoder, cannot be resumed"
                    )
