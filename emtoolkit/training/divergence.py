"""`training.on_nan: stop`: a training whose loss is no longer a finite number ends, and says so."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emtoolkit.errors import DivergedError
from emtoolkit.training.trainer import DivergenceNotingTrainer

# Of the numbers that a Trainer logs, those of which one is not finite if training has diverged.
_LOGGED = ("loss", "grad_norm", "eval_loss")
_ADVICE = (
    "the checkpoints of earlier steps stay; lower training.learning_rate or training.max_grad_norm, or set "
    "training.on_nan to continue"
)


class StopWhereDiverged(TrainerCallback):
    """Ends training at the first logged number that is not finite; the Trainer has taken the numbers from the GPU."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the numbers.

        Raises:
            DivergedError: one is not finite.
        """
        for name in _LOGGED:
            value = (logs or {}).get(name)
            if isinstance(value, float) and not math.isfinite(value):
                step = state.global_step
                raise DivergedError(f"training diverged: the {name} of step {step} is {value}", step)


@contextmanager
def named_as_divergence(trainer: DivergenceNotingTrainer) -> Iterator[None]:
    """Name the first step whose loss was not finite, whatever fails afterwards, such as sampling from such logits.

    Raises:
        DivergedError: training has diverged.
    """
    try:
        yield
    except (DivergedError, RuntimeError) as error:
        step = trainer.diverged_at
        if isinstance(error, DivergedError) and (step is None or error.step < step):
            raise DivergedError(f"{error}; {_ADVICE}", error.step) from error
        if step is None:
            raise
        raise DivergedError(
            f"training diverged: the loss of step {step} is not a finite number; {_ADVICE}", step
        ) from error
