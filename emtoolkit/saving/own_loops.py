"""Training loops of other people's own, which send the events of a Trainer by themselves: what must be right in them.

A loop that forgets to count its steps, or ends a step before the optimizer has changed the weights, would have other
weights saved under the number of a step. What can be seen is refused with the line to add; a loop that is right needs
nothing.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.errors import CheckpointError, ConfigError
from emtoolkit.saving.output_directory import OutputDirectory
from emtoolkit.saving.strategy import SavingStrategy

logger = logging.getLogger(__name__)

# The values of each tensor that are compared.
_COMPARED = 4096
# More steps than a sentence can name are counted.
_NAMED = 5


class StepCount:
    """The number of the last step that ended, by the events of one training."""

    def __init__(self) -> None:
        self.first = self._last = 0

    def begin(self, state: Any) -> None:
        """A training begins.

        Raises:
            ConfigError: the training does not say how many steps it has.
        """
        if state.max_steps < 1:
            raise ConfigError(
                f"trainer.state.max_steps: {state.max_steps} when training begins, so there is no step to train; raise "
                "num_train_epochs or max_steps; a training loop of your own sets it to the number of optimizer steps "
                "before on_train_begin"
            )
        self.first = self._last = state.global_step

    def step_ended(self, step: int) -> None:
        """`step` has ended.

        Raises:
            CheckpointError: the training has not counted the step.
        """
        if step <= self._last:
            raise CheckpointError(
                f"trainer.state.global_step: {step} at the end of the step after step {self._last}; a training loop of "
                "your own adds 1 to it for each optimizer step, before on_step_end"
            )
        self._last = step


def begun(strategy: SavingStrategy | None) -> SavingStrategy:
    """`strategy`, which exists once training has begun.

    Raises:
        ConfigError: training has not begun.
    """
    if strategy is None:
        raise ConfigError(
            "ScheduledCheckpointCallback: an event of a training came before on_train_begin; add the callback before "
            "trainer.train(), and call trainer.callback_handler.on_train_begin in a training loop of your own"
        )
    return strategy


def known_objects(objects: Mapping[str, Any], trainer: Any) -> dict[str, Any]:
    """The `objects` of an event, and those of `trainer` that the event lacks: a loop of one's own may not pass them."""
    found = dict(objects)
    if trainer is not None:
        for name in ("model", "optimizer", "lr_scheduler"):
            if found.get(name) is None:
                found[name] = getattr(trainer, name, None)
        if found.get("train_dataloader") is None and trainer.train_dataset is not None:
            found["train_dataloader"] = trainer.get_train_dataloader()
    return found


class FirstUpdate:
    """Whether anything has changed the weights in `tensors` since training began, by the first values of each.

    An optimizer that is fused changes weights without a new version of the tensor.
    """

    def __init__(self, tensors: Iterable[Tensor], step: int) -> None:
        self._tensors = list(tensors)
        self._step = step
        self._before: list[Tensor] | None = self._values()

    def step_ended(self, step: int, *, is_announced: bool) -> None:
        """`step` has ended; `is_announced` says that an event of the optimizer came before.

        Raises:
            CheckpointError: the weights are those of the first step.
        """
        if not is_announced and not self._has_changed():
            raise CheckpointError(
                f"step {step} ended with the weights of step {self._step}; a training loop of your own calls "
                "trainer.callback_handler.on_step_end after optimizer.step(), and on_optimizer_step between the two "
                "where a step may leave the weights as they are"
            )
        self._before = None

    def training_ended(self, step: int) -> None:
        """Training has ended at `step`.

        Raises:
            CheckpointError: the weights have changed, and no step was counted.
        """
        if step == self._step and self._before is not None and self._has_changed():
            raise CheckpointError(
                f"training has changed the weights and ended at step {step}, where it began; a training loop of your "
                "own adds 1 to trainer.state.global_step for each optimizer step, and calls "
                "trainer.callback_handler.on_step_end"
            )

    def _has_changed(self) -> bool:
        return self._before is None or not all(map(torch.equal, self._before, self._values()))

    def _values(self) -> list[Tensor]:
        return [tensor.detach().reshape(-1)[:_COMPARED].to("cpu", copy=True) for tensor in self._tensors]


def warn_of_missed_steps(directory: Path, scheduled: Iterable[int], first: int, last: int) -> None:
    """Warn of the `scheduled` steps after `first` and up to `last` that training passed and that have no checkpoint."""
    there = set(os.listdir(directory))
    missed = [step for step in sorted(scheduled) if first < step <= last and checkpoint_name(step) not in there]
    if not missed:
        return
    pruned = OutputDirectory.open(directory).pruned
    if missed := [step for step in missed if step not in pruned]:
        named = ", ".join(map(str, missed[:_NAMED]))
        more = f" and {len(missed) - _NAMED} more" if len(missed) > _NAMED else ""
        logger.warning(
            "no checkpoint of the scheduled steps %s%s: training passed them without the event on_step_end; a training "
            "loop of your own calls it for each optimizer step",
            named,
            more,
        )
