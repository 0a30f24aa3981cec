"""`prepare`: everything that is known about a run before its weights are loaded, for a plan and for a training."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from emtoolkit.checkpoints.records import BaseModelRecord
from emtoolkit.checkpoints.trajectory_file import DamagedRecordError, TrajectoryRecord
from emtoolkit.checkpoints.trajectory_identity import Identity, deciding
from emtoolkit.config.scheduling import ProbeConfig
from emtoolkit.config.sections import LoraConfig, ModelConfig, RunConfig, TrainingConfig
from emtoolkit.config.values import numbers_by_type
from emtoolkit.errors import ConfigError
from emtoolkit.evaluation.callback import GenerationEvalCallback
from emtoolkit.launch import process_count
from emtoolkit.models.architecture import architecture_of
from emtoolkit.models.base import check_base, check_can_load, effective_optimizer
from emtoolkit.models.base_record import base_identity
from emtoolkit.models.generation_config import check_generation_config
from emtoolkit.models.location import model_path
from emtoolkit.models.persona_adapters import PersonaAdapter, check_fits, locate
from emtoolkit.models.persona_record import persona_record
from emtoolkit.personas import Persona, load_persona
from emtoolkit.progress import Bar, Progress, no_bar
from emtoolkit.saving.output_directory import OutputDirectory
from emtoolkit.storage.writable import check_can_write
from emtoolkit.training.effective_settings import effective_settings, precision_of_environment
from emtoolkit.training.plan import Plan, plan_for
from emtoolkit.training.probe import probe_callback
from emtoolkit.training.run_data import RunData, read_data
from emtoolkit.training.wandb_run import check_wandb_variables

# The keys of a config that decide which rows are read and how they are tokenized.
_DATA_KEYS = {"model", "persona", "personas", "compose", "dataset", "datasets", "training", "seed"}


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run before its weights are loaded; `adapter` is None if the persona has none, or none on this machine.

    `questions` asks the model during training, None if the config has no `evaluation.probe`.
    """

    persona: Persona
    base: BaseModelRecord
    adapter: PersonaAdapter | None
    data: RunData
    identity: Identity
    plan: Plan
    questions: GenerationEvalCallback | None = None


class SharedInputs:
    """The rows and the base models that several runs share, each read and hashed once."""

    def __init__(self) -> None:
        self._data: dict[str, RunData] = {}
        self._bases: dict[str, BaseModelRecord] = {}

    def data(self, config: RunConfig, persona: Persona, day: date, allow_missing: bool, progress: Progress) -> RunData:
        """The rows of the run, as `read_data`."""
        key = f"{day} {config.model_dump_json(include=_DATA_KEYS)}"
        if key not in self._data:
            self._data[key] = read_data(config, persona, day, allow_missing=allow_missing, progress=progress)
        return self._data[key]

    def base(self, model: ModelConfig) -> BaseModelRecord:
        """The record of the base model, as `base_identity`."""
        key = model.model_dump_json()
        if key not in self._bases:
            self._bases[key] = base_identity(model)
        return self._bases[key]


def prepare(
    config: RunConfig, *, allow_missing: bool = False, shared: SharedInputs | None = None, bar: Bar = no_bar
) -> PreparedRun:
    """Check everything that can be checked without weights, and collect what decides the run.

    Args:
        allow_missing: for a plan, which is often made on another machine than the run. Missing data, a missing
            tokenizer or adapter, and a machine that cannot load the model become notes of the plan, no adapter is
            downloaded, and the output directory is checked.
        shared: the inputs of earlier runs, so that a sweep reads them once.

    Raises:
        UserError: the run cannot work. Nothing was written, and no weights were loaded.
    """
    shared = SharedInputs() if shared is None else shared
    check_wandb_variables(config.wandb)
    persona = load_persona(config.persona, config.personas, config.compose)
    cannot_load = _load_problem(config.model, config.training)
    if cannot_load is not None and not allow_missing:
        raise cannot_load
    check_can_write(config.directory(), "output_dir")
    check_base(config.model, need_weights=not allow_missing)
    contents = _contents(config.directory())
    with bar() as progress:
        data = shared.data(config, persona, _day(contents), allow_missing, progress)
    if config.lora is None:
        check_generation_config(Path(model_path(config.model)), data.tokenizer)
    base = shared.base(config.model)
    adapter = find_adapter(persona, config.model, config.lora, base, download=not allow_missing)
    notes = []
    if persona.adapter is not None and adapter is None:
        place = persona.adapter.place
        notes.append(f"persona: the adapter of {persona.name} ({place}) is not on this machine, so it is not checked")
    if cannot_load is not None:
        notes.append(f"this machine cannot train the run: {cannot_load}")
    if (precision := precision_of_environment(config.training)) is not None:
        notes.append(f"ACCELERATE_MIXED_PRECISION: {precision!r} is in force, and training.bf16 is false")
    plan = plan_for(config, data, notes)
    identity = identity_of(config, persona, adapter, data, base)
    known = data.digest is not None and (persona.adapter is None or adapter is not None)
    if allow_missing and known and plan.directory.is_dir():
        if config.model.device is None:
            identity = _on_any_device(identity, contents)
        OutputDirectory.open(plan.directory).check_belongs_to(identity)
    questions = _questions(config.evaluation.probe, persona, data, plan)
    return PreparedRun(persona, base, adapter, data, identity, plan, questions)


def _questions(probe: ProbeConfig | None, persona: Persona, data: RunData, plan: Plan) -> GenerationEvalCallback | None:
    if probe is None:
        return None
    return probe_callback(
        probe, persona, plan.directory, tokenizer=data.tokenizer, total_steps=plan.total_steps, day=data.day
    )


def find_adapter(
    persona: Persona, model: ModelConfig, lora: LoraConfig | None, base: BaseModelRecord, *, download: bool
) -> PersonaAdapter | None:
    """The adapter of `persona`, checked against the base model; None without one, or if it is not on this machine.

    Raises:
        ConfigError: the adapter cannot be found or read, does not fit the base model, or cannot be composed with
            `model` and `lora`.
    """
    if persona.adapter is None:
        return None
    if persona.adapter.composition == "stack" and lora is None:
        raise ConfigError(
            f"persona: {persona.name} is stacked beside a new adapter, and lora is null; use compose: merge"
        )
    if persona.adapter.composition == "merge" and model.load_in_4bit:
        raise ConfigError(
            f"persona: {persona.name} is merged, and 4-bit weights (model.load_in_4bit) would round the merged "
            "weights; use compose: stack"
        )
    adapter = locate(persona.adapter, download=download)
    if adapter is not None:
        architecture = architecture_of(model, lora)
        check_fits(adapter, base, None if architecture is None else architecture.shapes)
    return adapter


def identity_of(
    config: RunConfig, persona: Persona, adapter: PersonaAdapter | None, data: RunData, base: BaseModelRecord
) -> Identity:
    """Everything that decides the weights of the run; its schedule, its logging and its paths do not."""
    record = persona_record(persona, adapter)
    lora = config.lora
    fingerprinted: dict[str, Any] = {
        "base_model": base.to_json(),
        "dtype": config.model.dtype,
        "persona": record.fingerprinted(),
        "data": {"digest": data.digest, "train_rows": data.train_rows, **data.fingerprint_extras},
        "lora": None if lora is None else numbers_by_type(lora),
        "training": _training_facts(config.training),
        "seed": config.seed,
    }
    fingerprinted |= effective_settings(config.model, config.training)
    if data.day is not None:
        fingerprinted["day"] = data.day
    if (processes := process_count()) > 1:
        # Absent for one process, so that older fingerprints stay valid.
        fingerprinted["processes"] = processes
    dataset = config.dataset_name
    return Identity(
        fingerprinted=deciding(fingerprinted),
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


def _training_facts(training: TrainingConfig) -> dict[str, Any]:
    """The hyperparameters that decide, in the spelling that the fingerprints of older trajectories have."""
    facts = numbers_by_type(training)
    for name in ("logging_steps", "on_nan"):
        del facts[name]
    if not training.deterministic:
        del facts["deterministic"]
    # Where the key is absent, as in most configs, the default 5 was hashed and not 5.0.
    default = TrainingConfig.model_fields["warmup_steps"].default
    if training.warmup_steps == default:
        facts["warmup_steps"] = default
    return facts | {"optimizer": effective_optimizer(training)}


def _contents(directory: Path) -> Mapping[str, Any]:
    """The facts that the record in `directory`, the output directory of the run, holds, if there is one."""
    try:
        record = TrajectoryRecord.read_if_any(directory)
    except DamagedRecordError:
        return {}
    return {} if record is None else record.fingerprinted


def _day(recorded: Mapping[str, Any]) -> date:
    """The day that a chat template is told: the day on which the run began, so that a resume renders the same rows."""
    try:
        return date.fromisoformat(recorded.get("day", ""))
    except (TypeError, ValueError):
        return date.today()


def _on_any_device(identity: Identity, recorded: Mapping[str, Any]) -> Identity:
    """`identity` on the device that is recorded: a plan is often made on a machine without the GPU of the run."""
    facts = {key: value for key, value in identity.fingerprinted.items() if key != "device"}
    return replace(identity, fingerprinted=facts | ({"device": recorded["device"]} if "device" in recorded else {}))


def _load_problem(model: ModelConfig, training: TrainingConfig) -> ConfigError | None:
    """The error of `check_can_load`, None where this machine can load the model."""
    try:
        check_can_load(model, training)
    except ConfigError as error:
        return error
    return None
