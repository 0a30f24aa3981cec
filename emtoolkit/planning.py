"""What a run will do, worked out from its config and its data before any weights are loaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emtoolkit.architecture import Architecture, architecture_of, bytes_of
from emtoolkit.checkpoints.manifest import Identity
from emtoolkit.checkpoints.session import check_belongs_to
from emtoolkit.config import RunConfig
from emtoolkit.data import Tokenized, read_chat_rows, split_rows, tokenize
from emtoolkit.errors import ConfigError, ScheduleError, nearest
from emtoolkit.estimates import Memory, Setting, estimate
from emtoolkit.locations import expand
from emtoolkit.models import base_identity, check_can_load, effective_optimizer, load_tokenizer, model_path
from emtoolkit.personas import Persona, load_persona
from emtoolkit.questions import PUBLISHED_PROTOCOL, EvaluationCost, read_questions
from emtoolkit.schedule import Schedule
from emtoolkit.steps import Steps


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
    """The rows of a run: their digest, and how many are trained on and held out."""

    digest: str | None
    train_rows: int
    test_rows: int
    tokenizer: Any
    train: Tokenized | None
    test: Tokenized | None
    notes: tuple[str, ...]


def plan(config: RunConfig) -> Plan:
    """Check everything that can be checked without weights, and say what the run would do.

    Raises:
        UserError: the run cannot work; nothing was written and no weights were loaded.
    """
    persona = load_persona(config.persona, config.personas)
    data = read_data(config, persona, for_plan=True)
    planned = plan_for(config, data)
    if data.digest is not None and planned.directory.is_dir():
        check_belongs_to(planned.directory, identity_of(config, persona, data))
    try:
        check_can_load(config.model, config.training)
    except ConfigError as error:
        # A plan is often made elsewhere than the run.
        return replace(planned, notes=(*planned.notes, f"it cannot be trained on this machine: {error}"))
    return planned


def identity_of(config: RunConfig, persona: Persona, data: RunData, base: Mapping[str, Any] | None = None) -> Identity:
    """What decides the weights of this run; the words of its schedule, its logging and its paths do not.

    `base` is what `base_identity` says of its model, where it is known already: hashing a large one takes seconds.
    """
    base = base_identity(config.model) if base is None else base
    training = config.training.model_dump(exclude={"logging_steps", "optimizer"})
    decides = {
        "base_model": base,
        "dtype": config.model.dtype,
        "persona": persona.as_manifest(),
        "data": {"digest": data.digest, "train_rows": data.train_rows},
        "lora": config.lora.model_dump() if config.lora is not None else None,
        "training": training | {"optimizer": effective_optimizer(config.training)},
        "seed": config.seed,
    }
    dataset = Path(config.dataset).stem
    return Identity(
        decides=decides,
        base_model=base,
        persona=persona.as_manifest(),
        collection=f"{persona.name}-{dataset}-{Path(base['name']).name}-s{config.seed}",
        tags=(f"persona-{persona.name}", f"dataset-{dataset}"),
    )


def read_data(config: RunConfig, persona: Persona, *, for_plan: bool) -> RunData:
    """The rows of the run, tokenized; counted only, for a plan whose file or tokenizer is not here yet."""
    path, rows = _dataset(config)
    if for_plan and rows is not None and not path.exists():
        test_rows = math.ceil(rows * config.training.test_fraction)
        note = f"{path} is not there yet: planned with the {rows} rows that datasets.{config.dataset}.rows declares"
        return RunData(None, rows - test_rows, test_rows, None, None, None, (note,))
    chats = read_chat_rows(path)
    if rows is not None and rows != len(chats):
        raise ConfigError(f"datasets.{config.dataset}.rows: {rows} is declared, and {path} holds {len(chats)} rows")
    for_training, held_out = split_rows(len(chats), config.training.test_fraction, config.seed)
    try:
        tokenizer = load_tokenizer(config.model)
    except ConfigError as error:
        if not for_plan or Path(model_path(config.model)).is_dir():
            raise
        return RunData(chats.digest, len(for_training), len(held_out), None, None, None, (str(error),))
    parts = [
        tokenize([chats.conversations[i] for i in indices], tokenizer, persona, config.training.max_length)
        for indices in (for_training, held_out)
    ]
    if len(parts[0].dataset) == 0:
        raise ConfigError(f"training.max_length: {config.training.max_length} leaves no answer in any row of {path}")
    notes = []
    shortened, dropped = sum(p.shortened for p in parts), sum(p.dropped for p in parts)
    if shortened or dropped:
        notes.append(
            f"{path}: {shortened} rows were shortened and {dropped} dropped at max_length {config.training.max_length}"
        )
    test = parts[1] if len(parts[1].dataset) else None
    return RunData(chats.digest, len(parts[0].dataset), len(parts[1].dataset), tokenizer, parts[0], test, tuple(notes))


def _dataset(config: RunConfig) -> tuple[Path, int | None]:
    """The file of the run's dataset: one that the config names, or a path; and its declared number of rows."""
    if config.dataset in config.datasets:
        entry = config.datasets[config.dataset]
        return expand(entry.path).absolute(), entry.rows
    path = expand(config.dataset)
    if path.suffix == ".jsonl":
        return path.absolute(), None
    names = sorted(config.datasets)
    raise ConfigError(
        f"dataset: {config.dataset!r} is neither a .jsonl file nor one of the config's datasets: "
        f"{', '.join(names) or 'there are none'}{nearest(config.dataset, names)}"
    )


def plan_for(config: RunConfig, data: RunData) -> Plan:
    total = _total_steps(config, data.train_rows)
    schedule = config.checkpointing.to_schedule()
    notes = list(data.notes)
    try:
        schedule.check_reachable(total)
    except ScheduleError as error:
        if not config.checkpointing.allow_unreachable:
            raise ConfigError(f"checkpointing: {error}") from None
        notes.append(schedule.unreachable_sentence(total) or "")
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
    """The optimizer steps of the run, counted as the Trainer counts them in one process."""
    training = config.training
    batches = train_rows // training.batch_size if training.drop_last else math.ceil(train_rows / training.batch_size)
    if batches == 0:
        raise ConfigError(f"training.batch_size: {training.batch_size} is more than the {train_rows} rows to train on")
    if training.max_steps is not None:
        return training.max_steps
    return math.ceil(training.epochs * math.ceil(batches / training.gradient_accumulation))
