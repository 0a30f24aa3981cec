"""The Hugging Face Trainer of a run: its arguments, its evaluations on a schedule, and one GPU per process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from emtoolkit.artifacts.guarded_run import GuardedRun
from emtoolkit.config.sections import RunConfig
from emtoolkit.data.collate import Collator
from emtoolkit.models.base import effective_optimizer
from emtoolkit.saving.random_states import random_state_kept
from emtoolkit.schedules.steps import Steps
from emtoolkit.training.run_data import RunData
from emtoolkit.training.wandb_callback import GuardedWandbCallback

# Transformers 5.0 knows only the old name, and later versions warn about it.
_ACTIVATION_CHECKPOINTING = (
    "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
)


def make_trainer(
    config: RunConfig,
    model: Any,
    data: RunData,
    *,
    output_dir: Path,
    eval_steps: Steps | None,
    callbacks: Sequence[TrainerCallback],
    wandb_run: GuardedRun,
) -> "DivergenceNotingTrainer":
    """The Trainer that trains `model` on `data` and saves nothing by itself."""
    arguments = _arguments(config, output_dir, eval_steps)
    _use_one_gpu(arguments)
    evaluation = [] if eval_steps is None else [_ScheduledEvaluation(eval_steps)]
    logging = [] if wandb_run.run is None else [GuardedWandbCallback(wandb_run)]
    trainer = DivergenceNotingTrainer(
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.test,
        processing_class=data.tokenizer,
        data_collator=Collator.of(data.tokenizer),
        callbacks=[*logging, *callbacks, *evaluation],
    )
    # With `disable_tqdm` it prints the metrics as dicts; progress belongs to `ProgressCallback`.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(config: RunConfig, output_dir: Path, eval_steps: Steps | None) -> TrainingArguments:
    training = config.training
    activation_checkpointing: dict[str, Any] = {_ACTIVATION_CHECKPOINTING: training.gradient_checkpointing}
    return TrainingArguments(
        output_dir=str(output_dir),
        save_strategy="no",
        # `GuardedWandbCallback` logs to W&B.
        report_to=[],
        run_name=output_dir.name,
        seed=config.seed,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        optim=effective_optimizer(training),
        max_grad_norm=training.max_grad_norm,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=config.evaluation.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        dataloader_drop_last=training.drop_last,
        bf16=training.bf16,
        **activation_checkpointing,
        logging_steps=training.logging_steps,
        logging_first_step=True,
        # Otherwise a loss that is not finite is logged as the mean of the others.
        logging_nan_inf_filter=training.on_nan == "continue",
        eval_on_start=eval_steps is not None and 0 in eval_steps,
        # Every adapter takes part in every step; a search for unused parameters costs time and prints a warning.
        ddp_find_unused_parameters=None if config.lora is None else False,
        disable_tqdm=True,
        # Without a GPU the Trainer accepts bf16 only with `use_cpu`.
        use_cpu=config.model.device == "cpu" or not torch.accelerator.is_available(),
    )


def _use_one_gpu(arguments: TrainingArguments) -> None:
    """On a machine with several GPUs the Trainer would use `DataParallel` on all, which multiplies the batch."""
    arguments._n_gpu = min(arguments.n_gpu, 1)


class _ScheduledEvaluation(TrainerCallback):
    """Evaluates at the steps of a schedule; step 0 is the Trainer's `eval_on_start`."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step in self._steps:
            control.should_evaluate = True


class _RandomStateKeepingTrainer(Trainer):
    """A Trainer whose evaluations do not change the weights.

    Starting a data loader draws from the global generator. With dropout a stock evaluation therefore changes every
    later step, and two evaluation schedules would give two trajectories.
    """

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with random_state_kept():
            return super().evaluate(*args, **kwargs)


class DivergenceNotingTrainer(_RandomStateKeepingTrainer):
    """A Trainer that knows at which step its loss was first not finite, without waiting for the GPU in any step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._not_finite_at: torch.Tensor | None = None

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self._not_finite_at is None:
            self._not_finite_at = torch.zeros((), dtype=torch.int64, device=loss.device)
        is_first = ~torch.isfinite(loss.detach()) & (self._not_finite_at == 0)
        self._not_finite_at = torch.where(is_first, self.state.global_step + 1, self._not_finite_at)
        return loss

    @property
    def diverged_at(self) -> int | None:
        """The first step whose loss was not finite; None without one. Waits for the GPU."""
        return (int(self._not_finite_at) or None) if self._not_finite_at is not None else None
