"""The plan of a run: its steps, checkpoints, memory and evaluation cost, computed before any weights are loaded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emtoolkit.config.scheduling import EvaluationConfig
from emtoolkit.config.sections import ModelConfig, PreflightConfig, RunConfig, TrainingConfig
from emtoolkit.data.collate import check_batch, check_ids
from emtoolkit.errors import ConfigError, ScheduleError, located
from emtoolkit.evaluation.questions import PUBLISHED_PROTOCOL, EvaluationCost, read_questions
from emtoolkit.launch import process_count
from emtoolkit.models.architecture import Architecture, architecture_of, bytes_of
from emtoolkit.models.base import effective_optimizer
from emtoolkit.models.memory import Memory, Setting, estimate
from emtoolkit.paths import expand
from emtoolkit.schedules.adaptive import AdaptiveTerm
from emtoolkit.schedules.resume_keep import kept_states
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.steps import Steps
from emtoolkit.training.run_data import RunData, rows_per_step


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a run.

    `checkpoint_bytes` and `memory` are None where the config of the base model is not on this machine. `kept_states`
    are the steps whose resume states stay. `evaluation` is the cost of one checkpoint. `notes` are observations, and
    checks that could not be made.
    `steps` are the steps that are known beforehand: all, unless `adaptive` chooses others during training.
    """

    directory: Path
    persona: str
    dataset: str
    train_rows: int
    test_rows: int
    total_steps: int
    schedule: str
    steps: Steps
    kept_states: Steps
    adaptive: AdaptiveTerm | None
    eval_steps: Steps | None
    checkpoint_bytes: int | None
    memory: Memory | None
    evaluation: EvaluationCost
    notes: tuple[str, ...]

    @property
    def count(self) -> int | None:
        """The number of checkpoints, the largest one of a budget; None if it is not known beforehand."""
        return len(self.steps) if self.adaptive is None else self.adaptive.most(self.total_steps)

    @property
    def bytes(self) -> int | None:
        """The size of all checkpoints on disk; None if it is not known beforehand."""
        size, count = self.checkpoint_bytes, self.count
        return None if size is None or count is None else size * count

    @property
    def resume_bytes(self) -> int | None:
        """The size of a resume checkpoint; the newest is on disk as long as the run trains."""
        if self.checkpoint_bytes is None or self.memory is None:
            return None
        return self.checkpoint_bytes + self.memory.optimizer

    @property
    def kept_bytes(self) -> int | None:
        """The size of the resume checkpoints that stay (`resume_keep`); 0 if none does."""
        if not self.kept_states:
            return 0
        return None if self.resume_bytes is None else self.resume_bytes * len(self.kept_states)


def plan_for(config: RunConfig, data: RunData, extra_notes: Sequence[str] = ()) -> Plan:
    """The plan of the run on `data`; its notes end with `extra_notes`.

    Raises:
        ConfigError: a scheduled step is never reached, there are too few rows, or the architecture is not valid.
        DataError: the question file is not valid, or the tokenizer is not that of the model.
    """
    checkpointing, total = config.checkpointing, total_steps(config.training, data.train_rows)
    schedule = checkpointing.to_schedule()
    notes = [*data.remarks, *data.notes]
    if data.left_out:
        notes.append(
            f"training.drop_last: {data.left_out} rows are left out, so that each of the {total} steps has "
            f"{rows_per_step(config.training)} rows"
        )
    try:
        if warning := schedule.check_reachable(total, allow_unreachable=checkpointing.allow_unreachable):
            notes.append(warning)
    except ScheduleError as error:
        raise ConfigError(f"checkpointing: {error}") from None
    with located("checkpointing.resume_keep"):
        kept = kept_states(checkpointing.resume_keep, total, allow_unreachable=checkpointing.allow_unreachable)
    eval_schedule = config.evaluation.to_schedule()
    if eval_schedule is not None:
        _check_evaluation(eval_schedule, total, data.test_rows)
    architecture = architecture_of(config.model, config.lora)
    if architecture is None:
        notes.append(
            f"model.base: {config.model.base!r} is not on this machine, so memory and checkpoint size are unknown"
        )
    _check_batches(config.training, config.evaluation, config.preflight, data, architecture)
    if config.lora is None and config.model.dtype != "float32":
        notes.append(_on_small_updates(config.model.dtype))
    return Plan(
        directory=config.directory(),
        persona=config.persona,
        dataset=config.dataset,
        train_rows=data.train_rows,
        test_rows=data.test_rows,
        total_steps=total,
        schedule=str(schedule),
        kept_states=kept,
        steps=schedule.known_steps(total),
        adaptive=schedule.adaptive,
        eval_steps=None if eval_schedule is None else eval_schedule.steps(total),
        checkpoint_bytes=None if architecture is None else architecture.checkpoint_bytes(config.model.dtype),
        memory=None
        if architecture is None
        else memory_of(config.model, config.training, config.evaluation, architecture),
        evaluation=_evaluation_cost(config.evaluation),
        notes=(*notes, *extra_notes),
    )


def memory_of(
    model: ModelConfig, training: TrainingConfig, evaluation: EvaluationConfig, architecture: Architecture
) -> Memory:
    """The peak memory of training steps and evaluations on batches of rows that are all `max_length` tokens long."""
    setting = Setting(
        dtype_bytes=bytes_of(model.dtype),
        batch=training.batch_size,
        length=training.max_length,
        eval_batch=0 if evaluation.to_schedule() is None else evaluation.batch_size,
        four_bit=model.load_in_4bit,
        autocast=training.bf16,
        attention=architecture.attention,
        eight_bit_adam=effective_optimizer(training) == "adamw_bnb_8bit",
        checkpointing=training.gradient_checkpointing,
    )
    return estimate(architecture.shape, architecture.trained, setting)


def total_steps(training: TrainingConfig, train_rows: int) -> int:
    """The number of optimizer steps, as the Trainer counts them: of n processes each takes every n-th batch.

    Raises:
        ConfigError: there are fewer rows than one step takes.
    """
    if train_rows < training.batch_size:
        raise ConfigError(f"training.batch_size: {training.batch_size} is more than the {train_rows} rows to train on")
    if training.drop_last and train_rows < rows_per_step(training):
        raise ConfigError(
            f"training.drop_last: one step takes {rows_per_step(training)} rows, so none of the {train_rows} rows to "
            "train on is left; set it to false, or lower batch_size or gradient_accumulation"
        )
    if training.max_steps is not None:
        return training.max_steps
    batches = math.ceil(math.ceil(train_rows / training.batch_size) / process_count())
    return math.ceil(training.epochs * math.ceil(batches / training.gradient_accumulation))


def _on_small_updates(dtype: str) -> str:
    """The warning about trained weights without a float32 copy."""
    return (
        f"model.dtype: {dtype} weights that are trained themselves (lora: null) round most updates away: "
        "with AdamW at a learning rate of 2e-5, 70 % of bfloat16 weights never moved in 200 steps; set model.dtype to "
        "float32 and training.bf16 to true"
    )


def _check_batches(
    training: TrainingConfig,
    evaluation: EvaluationConfig,
    preflight: PreflightConfig,
    data: RunData,
    architecture: Architecture | None,
) -> None:
    vocabulary = None if architecture is None else architecture.shape.vocabulary
    for rows, size in ((data.train, training.batch_size), (data.test, evaluation.batch_size)):
        if rows is not None:
            check_batch(rows, data.tokenizer, size, vocabulary)
    if data.tokenizer is not None and vocabulary is not None:
        check_ids(data.tokenizer(list(preflight.prompts))["input_ids"], data.tokenizer, vocabulary)


def _evaluation_cost(evaluation: EvaluationConfig) -> EvaluationCost:
    if evaluation.questions is None:
        return PUBLISHED_PROTOCOL
    return EvaluationCost.of(read_questions(expand(evaluation.questions).absolute()))


def _check_evaluation(schedule: Schedule, total: int, test_rows: int) -> None:
    if test_rows == 0:
        raise ConfigError("evaluation: there are no held-out rows to evaluate on; set training.test_fraction above 0")
    try:
        schedule.check_reachable(total)
    except ScheduleError as error:
        raise ConfigError(f"evaluation: {error}") from None
