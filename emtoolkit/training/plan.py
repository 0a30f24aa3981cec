"""What a run will do, worked out from its config and its data before any weights are loaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emtoolkit.checkpoints.records import BaseModelRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.config.sections import RunConfig
from emtoolkit.data.controls import check_matched, matched_with
from emtoolkit.data.prepare import prepare, whole_steps
from emtoolkit.data.rows import read_rows
from emtoolkit.data.sources import source_of
from emtoolkit.errors import ConfigError, NotHereError, ScheduleError
from emtoolkit.evaluation.questions import PUBLISHED_PROTOCOL, EvaluationCost, read_questions
from emtoolkit.launch import process_count
from emtoolkit.models.architecture import Architecture, architecture_of, bytes_of
from emtoolkit.models.base import base_identity, check_can_load, effective_optimizer, load_tokenizer, model_path
from emtoolkit.models.memory import Memory, Setting, estimate
from emtoolkit.models.persona_adapters import PersonaAdapter, check_fits, locate
from emtoolkit.models.persona_record import persona_record
from emtoolkit.paths import expand
from emtoolkit.personas import Persona, load_persona
from emtoolkit.progress import Bar, Progress, no_bar, silent
from emtoolkit.saving.output_directory import OutputDirectory
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.steps import Steps

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do, worked out without loading weights.

    `checkpoint_bytes` and `memory` are None where the base model's config is not at hand; `evaluation` is of one
    checkpoint; `notes` say what could not be checked.
    """

    directory: Path
    persona: str
    dataset: str
    train_rows: int
    test_rows: int
    total_steps: int
    schedule: str
    steps: Steps
    eval_steps: Steps | None
    checkpoint_bytes: int | None
    memory: Memory | None
    evaluation: EvaluationCost
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int | None:
        """What the checkpoints will take on disk."""
        return None if self.checkpoint_bytes is None else self.checkpoint_bytes * len(self.steps)

    @property
    def resume_bytes(self) -> int | None:
        """What the state for continuing takes beside them while the run goes on."""
        if self.checkpoint_bytes is None or self.memory is None:
            return None
        return self.checkpoint_bytes + self.memory.optimizer


@dataclass(frozen=True, slots=True)
class RunData:
    """The rows of a run: their digest, and how many are trained on, held out, and left out by `drop_last`.

    `fingerprint_extras` are the facts beside the digest that decide which tokens are learnt; empty if all rows fit.
    `remarks` are observations, `notes` are possible mistakes of the user.
    """

    digest: str | None
    train_rows: int
    test_rows: int
    left_out: int
    tokenizer: Any
    train: "Dataset | None"
    test: "Dataset | None"
    fingerprint_extras: Mapping[str, Any]
    remarks: tuple[str, ...]
    notes: tuple[str, ...]


def plan(config: RunConfig, *, bar: Bar = no_bar) -> Plan:
    """Check everything that can be checked without weights, and say what the run would do.

    Raises:
        UserError: the run cannot work; nothing was written and no weights were loaded.
    """
    persona = load_persona(config.persona, config.personas, config.compose)
    adapter = find_adapter(config, persona, download=False)
    with bar() as progress:
        data = read_data(config, persona, for_plan=True, progress=progress)
    planned = plan_for(config, data)
    notes = list(planned.notes)
    if persona.adapter is not None and adapter is None:
        place = persona.adapter.place
        notes.append(f"persona: the adapter of {persona.name} ({place}) is not here yet, so it is not checked")
    elif data.digest is not None and planned.directory.is_dir():
        OutputDirectory.open(planned.directory).check_belongs_to(identity_of(config, persona, adapter, data))
    try:
        check_can_load(config.model, config.training)
    except ConfigError as error:
        # A plan is often made elsewhere than the run.
        notes.append(f"it cannot be trained on this machine: {error}")
    return replace(planned, notes=tuple(notes))


def find_adapter(
    config: RunConfig, persona: Persona, *, download: bool, base: BaseModelRecord | None = None
) -> PersonaAdapter | None:
    """The adapter of `persona`, if it has one, known to fit the base model; None as well if it is not here yet.

    `base` is what `base_identity` says of the model, where it is known already.

    Raises:
        ConfigError: it cannot be had, was trained on another base, does not fit, or cannot be put in as configured.
    """
    if persona.adapter is None:
        return None
    if persona.adapter.compose == "stack" and config.lora is None:
        raise ConfigError(
            f"persona: {persona.name} is to be stacked beside a new adapter, and lora is null; expected compose: merge"
        )
    if persona.adapter.compose == "merge" and config.model.load_in_4bit:
        raise ConfigError(
            f"persona: {persona.name} is to be merged, which weights in 4-bit (model.load_in_4bit) would not take "
            "exactly; expected compose: stack"
        )
    adapter = locate(persona.adapter, download=download)
    if adapter is not None:
        architecture = architecture_of(config.model, config.lora)
        shapes = None if architecture is None else architecture.shapes
        check_fits(adapter, base_identity(config.model) if base is None else base, shapes)
    return adapter


def identity_of(
    config: RunConfig,
    persona: Persona,
    adapter: PersonaAdapter | None,
    data: RunData,
    base: BaseModelRecord | None = None,
) -> Identity:
    """What decides the weights of this run; the words of its schedule, its logging and its paths do not.

    `base` is what `base_identity` says of its model, where it is known already: hashing a large one takes seconds.
    """
    base = base_identity(config.model) if base is None else base
    record = persona_record(persona, adapter)
    training = config.training.model_dump(exclude={"logging_steps", "optimizer"})
    fingerprinted: dict[str, Any] = {
        "base_model": base.to_json(),
        "dtype": config.model.dtype,
        "persona": record.fingerprinted(),
        "data": {"digest": data.digest, "train_rows": data.train_rows, **data.fingerprint_extras},
        "lora": config.lora.model_dump() if config.lora is not None else None,
        "training": training | {"optimizer": effective_optimizer(config.training)},
        "seed": config.seed,
    }
    if (processes := process_count()) > 1:
        # Of one process nothing is said, as before there could be others.
        fingerprinted["processes"] = processes
    dataset = config.dataset_name
    return Identity(
        fingerprinted=fingerprinted,
        base_model=base.model_copy(update={"dtype": config.model.dtype}),
        persona=record,
        base_place=model_path(config.model),
        persona_place=None if adapter is None else adapter.source.place,
        collection=f"{persona.name}-{dataset}-{Path(str(base.name)).name}-s{config.seed}",
        tags=(f"persona-{persona.name}", f"dataset-{dataset}"),
        split={
            "seed": config.seed,
            "test_fraction": config.training.test_fraction,
            "train_rows": data.train_rows,
            "test_rows": data.test_rows,
            "left_out": data.left_out,
        },
    )


def read_data(config: RunConfig, persona: Persona, *, for_plan: bool, progress: Progress = silent) -> RunData:
    """The rows of the run, tokenized; counted only, for a plan whose data or tokenizer is not here yet."""
    source, training = source_of(config, config.dataset), config.training
    rows = config.datasets[config.dataset].rows if config.dataset in config.datasets else None
    others = matched_with(config, source)
    try:
        chats = read_rows(source, progress)
    except NotHereError as error:
        if not for_plan or rows is None:
            raise
        note = f"{error}: planned with the {rows} rows that datasets.{config.dataset}.rows declares"
        return _counted(config, None, rows, (note,))
    if rows is not None and rows != len(chats):
        raise ConfigError(f"datasets.{config.dataset}.rows: {rows} is declared, and {source} holds {len(chats)} rows")
    matched, notes = [], []
    for other in others:
        try:
            matched.append(read_rows(other, progress))
            check_matched(chats, matched[-1])
        except NotHereError as error:
            if not for_plan:
                raise ConfigError(f"{error}; it is the matched control, and 'control: null' does without one") from None
            notes.append(f"{error}: that it asks the same as {source} is not checked")
    try:
        tokenizer = load_tokenizer(config.model)
    except ConfigError as error:
        if not for_plan or Path(model_path(config.model)).is_dir():
            raise
        return _counted(config, chats.digest, len(chats), (*chats.remarks(), *notes, str(error)))
    prepared = prepare(
        chats,
        matched,
        tokenizer,
        persona,
        max_length=training.max_length,
        test_fraction=training.test_fraction,
        seed=config.seed,
        multiple_of=_rows_per_step(config) if training.drop_last else 1,
        progress=progress,
    )
    return RunData(
        digest=chats.digest,
        train_rows=len(prepared.train),
        test_rows=len(prepared.test or ()),
        left_out=prepared.left_out,
        tokenizer=tokenizer,
        train=prepared.train,
        test=prepared.test,
        fingerprint_extras=prepared.fingerprinted(),
        remarks=tuple(chats.remarks()),
        notes=(*prepared.notes, *notes),
    )


def _counted(config: RunConfig, digest: str | None, rows: int, notes: tuple[str, ...]) -> RunData:
    """What is known of `rows` rows without their tokens."""
    test_rows = math.ceil(rows * config.training.test_fraction)
    train_rows = rows - test_rows
    if config.training.drop_last:
        train_rows = whole_steps(train_rows, _rows_per_step(config))
    return RunData(digest, train_rows, test_rows, rows - test_rows - train_rows, None, None, None, {}, (), notes)


def plan_for(config: RunConfig, data: RunData) -> Plan:
    total = _total_steps(config, data.train_rows)
    schedule = config.checkpointing.to_schedule()
    notes = [*data.remarks, *data.notes]
    if data.left_out:
        notes.append(
            f"training.drop_last: {data.left_out} rows are left out, so that each of the {total} steps is of "
            f"{_rows_per_step(config)} rows"
        )
    try:
        if warning := schedule.check_reachable(total, allow_unreachable=config.checkpointing.allow_unreachable):
            notes.append(warning)
    except ScheduleError as error:
        raise ConfigError(f"checkpointing: {error}") from None
    eval_schedule = config.evaluation.to_schedule()
    if eval_schedule is not None:
        _check_evaluation(eval_schedule, total, data.test_rows)
    architecture = architecture_of(config.model, config.lora)
    if architecture is None:
        notes.append(f"model.base: {config.model.base!r} is not here yet, so its size in memory and on disk is unknown")
    return Plan(
        directory=config.directory(),
        persona=config.persona,
        dataset=config.dataset,
        train_rows=data.train_rows,
        test_rows=data.test_rows,
        total_steps=total,
        schedule=str(schedule),
        steps=schedule.steps(total),
        eval_steps=None if eval_schedule is None else eval_schedule.steps(total),
        checkpoint_bytes=None if architecture is None else architecture.checkpoint_bytes(config.model.dtype),
        memory=None if architecture is None else memory_of(config, architecture),
        evaluation=_evaluation_cost(config),
        notes=tuple(notes),
    )


def memory_of(config: RunConfig, architecture: Architecture) -> Memory:
    """What a training step takes at its peak: a batch of rows that are all `max_length` tokens long."""
    training = config.training
    setting = Setting(
        dtype_bytes=bytes_of(config.model.dtype),
        batch=training.batch_size,
        length=training.max_length,
        four_bit=config.model.load_in_4bit,
        autocast=training.bf16,
        attention=architecture.attention,
        eight_bit_adam=effective_optimizer(training) == "adamw_bnb_8bit",
        checkpointing=training.gradient_checkpointing,
    )
    return estimate(architecture.shape, architecture.trained, setting)


def _evaluation_cost(config: RunConfig) -> EvaluationCost:
    if config.evaluation.questions is None:
        return PUBLISHED_PROTOCOL
    return EvaluationCost.of(read_questions(expand(config.evaluation.questions).absolute()))


def _check_evaluation(schedule: Schedule, total: int, test_rows: int) -> None:
    if test_rows == 0:
        raise ConfigError("evaluation: there are no held-out rows to evaluate on; set training.test_fraction above 0")
    try:
        schedule.check_reachable(total)
    except ScheduleError as error:
        raise ConfigError(f"evaluation: {error}") from None


def _total_steps(config: RunConfig, train_rows: int) -> int:
    """The optimizer steps of the run, counted as the Trainer counts them: each process has every n-th batch."""
    training, processes = config.training, process_count()
    if train_rows < training.batch_size:
        raise ConfigError(f"training.batch_size: {training.batch_size} is more than the {train_rows} rows to train on")
    if training.drop_last and train_rows < _rows_per_step(config):
        raise ConfigError(
            f"training.drop_last: it leaves nothing of the {train_rows} rows to train on, because one step takes "
            f"{_rows_per_step(config)}"
        )
    if training.max_steps is not None:
        return training.max_steps
    batches = math.ceil(math.ceil(train_rows / training.batch_size) / processes)
    return math.ceil(training.epochs * math.ceil(batches / training.gradient_accumulation))


def _rows_per_step(config: RunConfig) -> int:
    return config.training.batch_size * config.training.gradient_accumulation * process_count()
