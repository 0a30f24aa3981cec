"""Saving a model whose weights are spread over the processes of a training: FSDP, or DeepSpeed.

No process holds a complete tensor, so nothing can be copied in passing. At a scheduled step the Trainer is asked to
save, because its engine knows how. The Trainer writes into a temporary directory beside the checkpoints, and when every
process has finished writing, process 0 makes a checkpoint of the weights. The Trainer cannot be asked for step 0, for a
last step that was not known in advance, or for weights that load again if FSDP is configured to write shards; these
are gathered in the memory of process 0, tensor by tensor.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.saved_for import SavedFor
from emtoolkit.errors import ConfigError
from emtoolkit.saving.adapter_state import model_state
from emtoolkit.saving.model_state import ModelState, WriteFiles
from emtoolkit.saving.ranks import Ranks
from emtoolkit.saving.session import SavingSession
from emtoolkit.saving.strategy import SavingSetup, TrainerEvent
from emtoolkit.saving.writer import CheckpointContents
from emtoolkit.storage.atomic import TEMPORARY

logger = logging.getLogger(__name__)


def is_sharded(model: Any) -> bool:
    """Whether the weights of `model` or, under DeepSpeed, its optimizer are spread over the processes."""
    by_deepspeed = getattr(AcceleratorState(), "deepspeed_plugin", None) is not None
    return by_deepspeed or any(isinstance(p, DTensor) for p in model.parameters()) or _is_fsdp1(model)


def _is_fsdp1(model: Any) -> bool:
    """Whether the first version of FSDP shards `model`: its parameters are pieces that no tensor type marks."""
    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules())


class GatheredState:
    """The state of a sharded model at one moment: complete in process 0 and empty in the others."""

    def __init__(self, layout: ModelState, tensors: Mapping[str, Tensor]) -> None:
        self._layout = layout
        self._tensors = tensors

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self._tensors

    def still_lists(self, listing: Mapping[str, Tensor]) -> bool:
        return listing is self._tensors

    def writer(self) -> WriteFiles:
        return self._layout.writer()

    def adopt(self, source: Path, directory: Path) -> None:
        self._layout.adopt(source, directory)

    def forget(self) -> None:
        """Release the tensors, except those of a save that is still being written."""
        self._tensors = {}


def gathered_state(model: Any, ranks: Ranks) -> GatheredState:
    """The current weights in the memory of process 0; every process must call this."""
    layout = model_state(model)
    tensors = {}
    for name, tensor in layout.tensors.items():
        whole = _gathered(tensor)
        if ranks.index == 0:
            tensors[name] = whole
    return GatheredState(layout, tensors)


def _gathered(tensor: Tensor) -> Tensor:
    if isinstance(tensor, DTensor):
        whole: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]  # detach is typed as of a Tensor
        return whole.cpu()
    if hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().to("cpu", copy=True)
    return tensor.detach().to("cpu", copy=True)


@dataclass(frozen=True, slots=True)
class RequestedSave:
    """A save of `step` that the Trainer was asked for, and the arguments of the Trainer that the request replaced.

    The Trainer saves after the event in which it is asked, into `args.output_dir`. From the request until that save
    `args.output_dir` is a temporary directory, and `args.save_only_model` says whether the save is for a resume.
    """

    step: int
    scheduled: bool
    resume: bool
    directory: Path
    args: TrainingArguments
    own_output_dir: str | None
    own_save_only_model: bool

    @classmethod
    def request(cls, event: TrainerEvent, home: Path, *, scheduled: bool, resume: bool) -> "RequestedSave":
        """Ask the Trainer to save into `home` after this event: everything if `resume`, otherwise only the weights."""
        args = event.args
        requested = cls(
            event.step,
            scheduled,
            resume,
            home / checkpoint_name(event.step),
            args,
            args.output_dir,
            args.save_only_model,
        )
        args.output_dir, args.save_only_model = str(home), not resume
        event.control.should_save = True
        return requested

    def restore_arguments(self) -> None:
        """Give the Trainer back its own arguments."""
        self.args.output_dir, self.args.save_only_model = self.own_output_dir, self.own_save_only_model


class ShardedSaving:
    """A `SavingStrategy` for models that no process holds completely; only process 0 has a session."""

    def __init__(self, setup: SavingSetup, event: TrainerEvent) -> None:
        if _is_fsdp1(event.model):
            raise ConfigError(
                "fsdp: version 1 does not give process 0 the weights of a step between the Trainer's own saves; set "
                "fsdp_version: 2 (fsdp_config of the TrainingArguments: version: 2)"
            )
        if setup.schedule.adaptive is not None:
            raise ConfigError(
                f'schedule "{setup.schedule}": the weights are spread over the processes, so none of them can measure '
                "how far they move; use a schedule of known steps, such as every:25"
            )
        self._setup = setup
        self._session: SavingSession | None = None
        # The newest step that is a scheduled checkpoint, or will be after the Trainer has saved.
        self._last_step: int | None = None
        self._requested: RequestedSave | None = None
        self._by_trainer = _trainer_writes_weights()
        how = "saved by the Trainer" if self._by_trainer else "gathered by process 0, and written in the background"
        logger.info("the weights are sharded; scheduled steps are %s", how)
        gathered = gathered_state(event.model, setup.ranks)
        with setup.ranks.raise_on_all():
            if event.state.is_world_process_zero:
                self._session = setup.open_session(gathered)
        if setup.is_scheduled(event.step):
            self._save_tensors(event.step, gathered, final=event.step == setup.total_steps)
        gathered.forget()

    @property
    def waited_seconds(self) -> float:
        return self._session.disk.waited_seconds if self._session is not None else 0.0

    def between_steps(self, event: TrainerEvent) -> None:
        pass

    def before_update(self) -> None:
        pass

    def after_update(self, event: TrainerEvent) -> None:
        pass

    def finish_copy(self) -> None:
        pass

    def step_ended(self, event: TrainerEvent) -> None:
        if self._session is not None:
            self._session.disk.check()
        step, timing = event.step, self._setup.timing
        is_last = step >= self._setup.total_steps
        resume = self._setup.options.resume_at_end if is_last else timing.is_due(step)
        asked = timing.save_asked and not is_last
        scheduled = self._setup.is_scheduled(step) or bool(timing.interrupted_by) or asked
        if asked and self._session is not None:
            timing.requests.mark(self._session, step)
        by_trainer = scheduled and self._by_trainer
        if scheduled and not by_trainer:
            self._save_gathered(event, final=False, saved_for=self._reason(step))
        if by_trainer or resume:
            home = self._setup.directory / f"{TEMPORARY}trainer-{step}"
            self._requested = RequestedSave.request(event, home, scheduled=by_trainer, resume=resume)
            self._last_step = step if by_trainer else self._last_step
        else:
            timing.raise_if_interrupted(step)

    def trainer_saved(self, event: TrainerEvent) -> None:
        requested, self._requested = self._requested, None
        if requested is None:
            return
        requested.restore_arguments()
        random_states = self._setup.ranks.gather(self._setup.timing.random_state()) if requested.resume else []
        # The Trainer does not wait for other processes: process 0 may come here before their shards are written.
        self._setup.ranks.barrier()
        if self._session is not None:
            self._adopt(self._session, requested, random_states)
            self._setup.timing.requests.answer(self._session, event.step)
        self._setup.timing.raise_if_interrupted(event.step)

    def training_ended(self, event: TrainerEvent) -> None:
        self._save_gathered(event, final=True)
        if self._session is not None:
            self._session.mark_final(event.step)
            self._session.end(event.step)

    def training_failed(self, error: BaseException | None) -> None:
        """Save nothing: the other processes may be gone."""

    def _adopt(self, session: SavingSession, requested: RequestedSave, random_states: list[Any]) -> None:
        """Make checkpoints of the files that the Trainer has saved."""
        step = requested.step
        if requested.scheduled:
            contents = CheckpointContents.of_files(session.state, requested.directory)
            final = step == self._setup.total_steps
            session.save(step, lambda: contents, final=final, saved_for=self._reason(step))
        if requested.resume:
            session.adopt_resume_state(step, requested.directory, random_states)
        session.disk.submit(lambda: shutil.rmtree(requested.directory.parent))

    def _reason(self, step: int) -> SavedFor:
        if self._setup.is_scheduled(step):
            return "schedule"
        return "asked" if self._setup.timing.save_asked else "interruption"

    def _save_gathered(self, event: TrainerEvent, *, final: bool, saved_for: SavedFor = "schedule") -> None:
        """Save the step from weights that process 0 gathers into its memory, unless it is saved already."""
        if event.step == self._last_step:
            return
        if self._session is not None:
            self._session.disk.wait_for_fewer_than(self._setup.options.max_in_flight)
        gathered = gathered_state(event.model, self._setup.ranks)
        self._save_tensors(event.step, gathered, final=final, saved_for=saved_for)

    def _save_tensors(self, step: int, state: GatheredState, *, final: bool, saved_for: SavedFor = "schedule") -> None:
        self._last_step = step
        if self._session is not None:
            contents = CheckpointContents.of_tensors(state, state.tensors)
            self._session.save(step, lambda: contents, final=final, saved_for=saved_for)
        state.forget()


def _trainer_writes_weights() -> bool:
    """Whether the Trainer writes weights that load again; under FSDP it may write shards instead."""
    plugin = getattr(AcceleratorState(), "fsdp_plugin", None)
    return plugin is None or "FULL_STATE_DICT" in str(plugin.state_dict_type)
