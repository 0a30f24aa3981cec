"""From a `RunConfig` to a finished run: base, persona, adapter, then the Trainer with every save on a schedule."""

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from emtoolkit.checkpoints.listing import CheckpointInfo, list_checkpoints
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.config.sections import RunConfig
from emtoolkit.cpu_threads import threads_for
from emtoolkit.errors import CheckpointError
from emtoolkit.launch import ignore_signals
from emtoolkit.models.base import base_identity, check_can_load, compose, effective_optimizer, load_base
from emtoolkit.models.persona_adapters import PersonaAdapter
from emtoolkit.models.preflight import PersonaEffect, PersonaProbe
from emtoolkit.personas import Persona, load_persona
from emtoolkit.progress import Bar, no_bar
from emtoolkit.saving.callback import ScheduledCheckpointCallback
from emtoolkit.saving.output_directory import OutputDirectory, clear_left_overs
from emtoolkit.saving.ranks import Ranks
from emtoolkit.saving.signals import TrainingInterrupted
from emtoolkit.schedules.steps import Steps
from emtoolkit.training.plan import Plan, RunData, find_adapter, identity_of, plan_for, read_data
from emtoolkit.training.wandb_run import (
    Mode,
    finish_run,
    seconds_for_checkpoints,
    seconds_for_finish,
    start_run,
    wandb_mode,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run: where it is, what it holds, how long training waited for earlier saves, and which failed.

    `unpublished` are the steps that neither W&B nor the log of an offline run has. `differences` is what the persona
    was found to change, before step 1 and at the end.
    """

    directory: Path
    checkpoints: tuple[CheckpointInfo, ...]
    wandb_directory: Path | None
    waited_seconds: float
    trained: bool
    failures: tuple[str, ...] = ()
    unpublished: tuple[int, ...] = ()
    differences: tuple[PersonaEffect, ...] = ()


def train(config: RunConfig, *, resume: bool = False, bar: Bar = no_bar) -> RunResult:
    """Do the run that `config` describes.

    With `resume` it goes on from the newest resume checkpoint at or before the first scheduled step that is
    missing, does nothing if none is, and starts from the beginning if there is nothing to go on from. Steps that
    are there already are compared, not written again.

    Under a launcher every process calls this; only process 0 saves, and its result tells of W&B and of failures.

    Raises:
        UserError: before anything is loaded or written, if the run cannot work; the same in every process.
        TrainingInterrupted: SIGINT or SIGTERM; everything is saved.
    """
    ranks = Ranks.of_this_launch()
    try:
        return _train(config, ranks, resume=resume, bar=bar)
    except TrainingInterrupted:
        if ranks.count > 1:
            ignore_signals()
        raise
    finally:
        ranks.close()


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """What is known of a run before its model is loaded."""

    persona: Persona
    adapter: PersonaAdapter | None
    data: RunData
    plan: Plan
    identity: Identity


def _train(config: RunConfig, ranks: Ranks, *, resume: bool, bar: Bar) -> RunResult:
    """What all processes must agree on is done `raise_on_all`; what belongs to the run, by process 0."""
    with ranks.raise_on_all():
        ready = _get_ready(config, bar)
    for note in ready.plan.notes:
        logger.log(logging.INFO if note in ready.data.remarks else logging.WARNING, "%s", note)
    directory = ready.plan.directory
    resume_from: str | None = None
    mode: Mode = "disabled"
    with ranks.raise_on_all():
        if ranks.index == 0:
            found = OutputDirectory.open(directory)
            found.check_belongs_to(ready.identity)
            found.check_not_in_use()
            resume_from = _resume_point(found, ready.plan, resume)
            if resume_from == "nothing":
                clear_left_overs(directory, keep_resume_state=config.checkpointing.resume_at_end)
            else:
                mode = wandb_mode(config)
    resume_from = ranks.broadcast(resume_from)
    if resume_from == "nothing":
        return RunResult(directory, tuple(list_checkpoints(directory)), None, 0.0, trained=False)
    with ranks.raise_on_all():
        model, probe, before = _composed_model(config, ready)
    run = None
    with ranks.raise_on_all():
        if ranks.index == 0:
            directory.mkdir(parents=True, exist_ok=True)
            run = start_run(config, directory, directory.name, ready.identity.collection, mode)
            if run is not None:
                told = {"split": dict(ready.identity.split), "composition": ready.persona.composition}
                run.config.update(told)
    with threads_for(sum(parameter.numel() for parameter in model.parameters())):
        return _fit(config, ready, model, probe, before, run, resume_from)


def _get_ready(config: RunConfig, bar: Bar) -> PreparedRun:
    persona = load_persona(config.persona, config.personas, config.compose)
    check_can_load(config.model, config.training)
    with bar() as progress:
        data = read_data(config, persona, for_plan=False, progress=progress)
    # Once: hashing a large one takes a minute.
    base = base_identity(config.model)
    adapter = find_adapter(config, persona, download=True, base=base)
    return PreparedRun(
        persona, adapter, data, plan_for(config, data), identity_of(config, persona, adapter, data, base)
    )


def _composed_model(config: RunConfig, ready: PreparedRun) -> tuple[Any, PersonaProbe, PersonaEffect]:
    """Base, persona and a new adapter; the probe that looked at the base; and what the persona was found to change."""
    set_seed(config.seed)
    base = load_base(config.model)
    asked = config.preflight
    probe = PersonaProbe(base, ready.data.tokenizer, ready.persona, ready.adapter, asked.prompts, asked.threshold)
    model = compose(base, ready.adapter, config.lora, config.seed)
    before = probe.before_training(model)
    logger.info("%s", before)
    return model, probe, before


def _fit(
    config: RunConfig,
    ready: PreparedRun,
    model: Any,
    probe: PersonaProbe,
    before: PersonaEffect,
    run: Any,
    resume_from: str | None,
) -> RunResult:
    """Train `model` and save it, log to the W&B `run` if there is one, and look for the persona once more."""
    directory = ready.plan.directory
    callback = ScheduledCheckpointCallback(
        config.checkpointing.to_schedule(),
        output_dir=directory,
        identity=ready.identity,
        resume_every=config.checkpointing.resume_every,
        resume_at_end=config.checkpointing.resume_at_end,
        allow_unreachable=config.checkpointing.allow_unreachable,
        publish_timeout=seconds_for_checkpoints(config),
        max_in_flight=config.checkpointing.max_in_flight,
        on_error=config.checkpointing.on_error,
    )
    differences = [before]
    ended_well = False
    try:
        callbacks = [_PersonaCheck(probe), callback]
        trainer = _trainer(config, ready.plan, ready.data, model, callbacks, logs_to_wandb=run is not None)
        callback.follow(trainer)
        try:
            trainer.train(resume_from_checkpoint=resume_from)
        except BaseException:
            callback.save_after_failure()
            raise
        differences.append(probe.in_training(trainer.model, "at the end"))
        logger.info("%s", differences[-1])
        ended_well = True
    finally:
        if run is not None:
            _finish(run, config, callback, directory, differences, failed=not ended_well)
    return RunResult(
        directory=directory,
        checkpoints=tuple(list_checkpoints(directory)),
        wandb_directory=Path(run.dir).parent if run is not None else None,
        waited_seconds=callback.waited_seconds,
        trained=True,
        failures=tuple(map(str, callback.failures)),
        unpublished=tuple(sorted(callback.unpublished)),
        differences=tuple(differences),
    )


def _finish(
    run: Any,
    config: RunConfig,
    callback: ScheduledCheckpointCallback,
    directory: Path,
    differences: Sequence[PersonaEffect],
    *,
    failed: bool,
) -> None:
    """End the W&B run; that it lacks something is told once, and by the callback if it lacks checkpoints."""
    run.summary.update(
        {"checkpoints": len(callback.saved), "checkpoint_bytes": sum(saved.bytes for saved in callback.saved)}
        | {f"preflight/{found.when.replace(' ', '_')}": found.largest for found in differences}
    )
    why = finish_run(run, seconds_for_finish(config), failed=failed)
    if why is not None and not callback.unpublished:
        logger.warning("%s; it is whole in %s, and 'emtoolkit sync %s' sends it", why, directory, directory)


class _RandomStateKeepingTrainer(Trainer):
    """A Trainer whose evaluations leave no trace in the weights.

    Starting a data loader draws from the global generator, so with dropout a stock evaluation changes what is
    learnt after it; two schedules of evaluation would be two trajectories.
    """

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with _random_state_kept():
            return super().evaluate(*args, **kwargs)


class _PersonaCheck(TrainerCallback):
    """Looks for the persona once more where a resume has loaded an adapter: that may have switched another one off."""

    def __init__(self, probe: PersonaProbe) -> None:
        self._probe = probe

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step > 0:
            logger.info("%s", self._probe.in_training(kwargs["model"], f"where step {state.global_step} is resumed"))


class _ScheduledEvaluation(TrainerCallback):
    """Asks for an evaluation at the steps of a schedule; step 0 is the Trainer's `eval_on_start`."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step in self._steps:
            control.should_evaluate = True


def _trainer(
    config: RunConfig,
    planned: Plan,
    data: RunData,
    model: Any,
    callbacks: list[TrainerCallback],
    *,
    logs_to_wandb: bool,
) -> Trainer:
    training = config.training
    eval_steps = planned.eval_steps
    arguments = TrainingArguments(
        output_dir=str(planned.directory),
        save_strategy="no",
        report_to=["wandb"] if logs_to_wandb else [],
        run_name=planned.directory.name,
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
        gradient_checkpointing=training.gradient_checkpointing,
        logging_steps=training.logging_steps,
        logging_first_step=True,
        eval_on_start=eval_steps is not None and 0 in eval_steps,
        # Every adapter has a part in every step, and looking for one that has not costs time and a warning.
        ddp_find_unused_parameters=None if config.lora is None else False,
        disable_tqdm=False,
        # Without a GPU the Trainer refuses bf16 unless it is told that a CPU is meant.
        use_cpu=config.model.device == "cpu" or not torch.accelerator.is_available(),
    )
    _use_one_gpu(arguments)
    if eval_steps is not None:
        callbacks = [*callbacks, _ScheduledEvaluation(eval_steps)]
    return _RandomStateKeepingTrainer(
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.test,
        processing_class=data.tokenizer,
        data_collator=DataCollatorForSeq2Seq(data.tokenizer, padding=True),
        callbacks=callbacks,
    )


def _use_one_gpu(arguments: TrainingArguments) -> None:
    """Where a machine has several GPUs the Trainer would use `DataParallel` on all, and multiply the batch unasked."""
    arguments._n_gpu = min(arguments.n_gpu, 1)


def _resume_point(directory: OutputDirectory, planned: Plan, resume: bool) -> str | None:
    """Where to go on from: a directory, None for the beginning, or `nothing` if all is there."""
    there = directory.complete_steps
    if not directory.holds_a_run:
        return None
    if not resume:
        held = f"{len(there)} checkpoints of this very run" if there else "the beginning of this very run"
        raise CheckpointError(
            f"{directory.path}: it holds {held}; --resume goes on with it, --output-dir starts another one elsewhere"
        )
    missing = directory.first_missing(planned.steps)
    if missing is None and directory.ended_at is not None:
        return "nothing"
    found = directory.newest_resume_state(not_after=missing)
    if found is None:
        logger.warning(
            "%s: there is no resume checkpoint before step %s, so training starts again at step 0; "
            "steps that are there are compared, not written again",
            directory.path,
            missing,
        )
        return None
    logger.info("going on from %s", found)
    return str(found)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Put the generators of Python, NumPy and torch back to where they were."""
    python, numpy, devices = random.getstate(), np.random.get_state(), list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
