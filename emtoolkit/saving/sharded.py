"""Saving a model whose weights are spread over the processes of a training: FSDP, or DeepSpeed.

No process has a tensor whole, so nothing can be copied in passing. On a scheduled step the Trainer is asked to save,
as its engine knows how to; it writes into a temporary directory beside the checkpoints, and when every process has
come back from that, process 0 makes a checkpoint of what analysis needs of it. What the Trainer cannot be asked for
is gathered tensor by tensor instead: step 0, a last step that nobody saw coming, and all steps where FSDP was told to
write shards, among which the Trainer writes no weights that load again.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerControl, TrainingArguments

from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.saving.ranks import Ranks
from emtoolkit.saving.session import SavingSession
from emtoolkit.saving.snapshot import ModelState, model_state
from emtoolkit.saving.writer import CheckpointContents
from emtoolkit.storage.atomic import TEMPORARY

logger = logging.getLogger(__name__)


def is_sharded(model: Any) -> bool:
    """Whether other processes have a part of the weights of `model`, or, under DeepSpeed, of its optimizer."""
    by_deepspeed = getattr(AcceleratorState(), "deepspeed_plugin", None) is not None
    return by_deepspeed or any(isinstance(p, DTensor) for p in model.parameters())


class GatheredState:
    """The state of a sharded model at one moment; complete in process 0 and empty in the others."""

    def __init__(self, layout: ModelState, tensors: Mapping[str, Tensor]) -> None:
        self._layout = layout
        self._tensors = tensors

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self._tensors

    def write(self, directory: Path, tensors: Mapping[str, Tensor]) -> None:
        self._layout.write(directory, tensors)

    def adopt(self, source: Path, directory: Path) -> None:
        self._layout.adopt(source, directory)

    def forget(self) -> None:
        """Give the memory of the tensors back; what was handed on of them stays until it is written."""
        self._tensors = {}


def gathered_state(model: Any, ranks: Ranks) -> GatheredState:
    """The weights as they are, in the memory of process 0; to be called by every process."""
    layout = model_state(model)
    tensors = {}
    for name, tensor in layout.tensors.items():
        whole = _whole(tensor)
        if ranks.index == 0:
            tensors[name] = whole
    return GatheredState(layout, tensors)


def _whole(tensor: Tensor) -> Tensor:
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
    """A save that the Trainer was asked for: of which step, for what, and where it puts it."""

    step: int
    scheduled: bool
    resume: bool
    directory: Path


class ShardedSaves:
    """The saves of one sharded training into `directory`. Every method is called by every process.

    `session` is set in process 0 only, and makes checkpoints of what is there then.
    """

    def __init__(self, directory: Path, ranks: Ranks, max_in_flight: int) -> None:
        self.session: SavingSession | None = None
        # The newest step that is a scheduled checkpoint, or will be when the Trainer has saved.
        self.last_step: int | None = None
        self._directory = directory
        self._ranks = ranks
        self._max_in_flight = max_in_flight
        self._by_trainer = _trainer_writes_weights()
        how = "saved by the Trainer" if self._by_trainer else "gathered by process 0, and written in the background"
        logger.info("the weights are sharded; scheduled steps are %s", how)
        self._asked: RequestedSave | None = None
        self._own_arguments: tuple[str | None, bool] = (None, False)

    def save(
        self, args: TrainingArguments, control: TrainerControl, step: int, model: Any, *, scheduled: bool, resume: bool
    ) -> bool:
        """At the end of `step`: a scheduled checkpoint, a resume checkpoint, or both; whether the Trainer was asked."""
        by_trainer = scheduled and self._by_trainer
        if scheduled and not by_trainer:
            self.save_gathered(step, model, final=False)
        if by_trainer or resume:
            self._ask(args, control, step, scheduled=by_trainer, resume=resume)
        return by_trainer or resume

    def save_gathered(self, step: int, model: Any, *, final: bool) -> None:
        """A scheduled checkpoint of `step`, of weights that process 0 gathers into its memory, once."""
        if step != self.last_step:
            if self.session is not None:
                self.session.disk.wait_for_fewer_than(self._max_in_flight)
            self.adopt(step, gathered_state(model, self._ranks), final=final)

    def adopt(self, step: int, state: GatheredState, *, final: bool) -> None:
        """A scheduled checkpoint of `step`, of weights that have been gathered."""
        self.last_step = step
        if self.session is not None:
            self.session.save(step, final=final, contents=CheckpointContents.of_tensors(state, state.tensors))
        state.forget()

    def saved_by_trainer(self, args: TrainingArguments, random_state: Mapping[str, Any]) -> RequestedSave | None:
        """In `on_save`: make checkpoints of what the Trainer was asked for; None if it was not."""
        asked, self._asked = self._asked, None
        if asked is None:
            return None
        args.output_dir, args.save_only_model = self._own_arguments
        rng = self._ranks.gather(random_state) if asked.resume else []
        # The Trainer does not wait for the others: process 0 may be here before their shards are written.
        self._ranks.barrier()
        if self.session is not None:
            if asked.scheduled:
                contents = CheckpointContents.of_files(self.session.state, asked.directory)
                self.session.save(asked.step, final=asked.step == self.session.total_steps, contents=contents)
            if asked.resume:
                self.session.adopt_resume_state(asked.step, asked.directory, rng)
            self.session.disk.submit(lambda: shutil.rmtree(asked.directory.parent))
        return asked

    def _ask(
        self, args: TrainingArguments, control: TrainerControl, step: int, *, scheduled: bool, resume: bool
    ) -> None:
        """Have the Trainer save when this event is over: everything if `resume`, else only the weights."""
        home = self._directory / f"{TEMPORARY}trainer-{step}"
        self._asked = RequestedSave(step, scheduled, resume, home / checkpoint_name(step))
        self._own_arguments = args.output_dir, args.save_only_model
        args.output_dir, args.save_only_model = str(home), not resume
        control.should_save = True
        if scheduled:
            self.last_step = step


def _trainer_writes_weights() -> bool:
    """Whether weights that load again are among what the Trainer writes; shards of FSDP do not."""
    plugin = getattr(AcceleratorState(), "fsdp_plugin", None)
    return plugin is None or "FULL_STATE_DICT" in str(plugin.state_dict_type)
