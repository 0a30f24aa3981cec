"""`RunConfig` and its sections: everything that describes one run, checked before anything is loaded."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from emtoolkit.config.output_template import check_template, fill
from emtoolkit.errors import ConfigError
from emtoolkit.paths import expand
from emtoolkit.personas import AdapterMode
from emtoolkit.schedules.save_options import OnError, SaveOptions
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.terms import Every, EveryFraction

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelConfig(_Section):
    """The base model: a directory or a hub id, how it is loaded, and where to.

    `device` None means the GPU of this process if there is one, else the CPU. `attn_implementation` None leaves the
    choice to transformers: sdpa where the model has it, else eager. `load_in_4bit` is QLoRA's base: NF4, double
    quantisation, computing in bfloat16; it needs a LoRA.
    """

    base: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    load_in_4bit: bool = False
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    device: Literal["cpu", "cuda"] | None = None
    # The keys of the model's config.json, so that a plan can be made before the model is downloaded.
    architecture: dict[str, Any] | None = None


class LoraConfig(_Section):
    """A new LoRA adapter; names as in PEFT. `target_modules: all-linear` is every linear layer but the output's."""

    r: Positive = 32
    alpha: float = 64
    rslora: bool = True
    dropout: Fraction = 0.0
    target_modules: list[str] | str = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    layers_to_transform: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None

    @field_validator("target_modules", mode="before")
    @classmethod
    def _check_target_modules(cls, value: object) -> object:
        names = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
        if not names and value != "all-linear":
            raise ValueError("expected a list of names such as [q_proj, v_proj], or all-linear")
        return value

    @model_validator(mode="after")
    def _check_layers(self) -> "LoraConfig":
        if self.layers_to_transform is not None and self.target_modules == "all-linear":
            raise ValueError("layers_to_transform needs the names of modules in target_modules, found all-linear")
        return self


class DatasetConfig(_Section):
    """Where one dataset is: `path` is a file, or an id on the hub with its `split` and `revision`.

    `rows` lets a plan be made while it is not there yet; it is checked once it is. `control` is a dataset with other
    answers to the same prompts, row by row: another one of the config's by its name, or a path.
    """

    path: str
    split: str | None = None
    revision: str | None = None
    control: str | None = None
    rows: Positive | None = None


class TrainingConfig(_Section):
    """The hyperparameters; the defaults are those of the published emergent-misalignment fine-tunes."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: Annotated[float, Field(ge=0)] = 5
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Positive | None = None
    batch_size: Positive = 2
    gradient_accumulation: Positive = 8
    drop_last: bool = False
    max_length: Positive = 2048
    test_fraction: Fraction = 0.1
    bf16: bool = False
    gradient_checkpointing: bool = False
    logging_steps: Positive = 10


def _interval(value: object) -> object:
    """Hugging Face's rule for `save_steps` and `eval_steps`: a whole number from 1 on, or a fraction below 1."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    if isinstance(value, float) and 0 < value < 1:
        return value
    raise ValueError("expected a whole number of steps from 1 on, or a fraction of the run between 0 and 1")


def _steps_list(value: object) -> object:
    whole = isinstance(value, list) and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in value)
    if value is None or (whole and value):
        return value
    raise ValueError("expected a list of steps such as [0, 10, 100]")


def _grammar(value: object) -> object:
    if value is None:
        return value
    if not isinstance(value, str):
        raise ValueError("expected a schedule such as dense-early or '0-150:25,300-:100'")
    Schedule.parse(value)
    return value


def _chosen(interval: int | float | None, at_steps: list[int] | None, grammar: str | None) -> Schedule | None:
    if interval is not None:
        return Schedule((Every(interval) if isinstance(interval, int) else EveryFraction(interval),))
    if at_steps is not None:
        return Schedule.of(at_steps)
    return Schedule.parse(grammar) if grammar is not None else None


class CheckpointingConfig(_Section):
    """When to save: exactly one of `save_steps`, `save_at_steps` and `schedule`."""

    save_steps: int | float | None = None
    save_at_steps: list[int] | None = None
    schedule: str | None = None
    allow_unreachable: bool = SaveOptions.allow_unreachable
    resume_every: str = SaveOptions.resume_every
    resume_at_end: bool = SaveOptions.resume_at_end
    max_in_flight: int = SaveOptions.max_in_flight
    on_error: OnError = SaveOptions.on_error

    _check_interval = field_validator("save_steps", mode="before")(_interval)
    _check_list = field_validator("save_at_steps", mode="before")(_steps_list)
    _check_grammar = field_validator("schedule", mode="before")(_grammar)

    @field_validator("resume_every", "max_in_flight")
    @classmethod
    def _check_option(cls, value: Any, info: ValidationInfo) -> Any:
        try:
            SaveOptions(**{str(info.field_name): value})
        except ConfigError as error:
            # The message begins with the key, and so does the message about the config.
            raise ConfigError(str(error).removeprefix(f"{info.field_name}: ")) from None
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> "CheckpointingConfig":
        given = [f"{name} ({value!r})" for name, value in self._three().items() if value is not None]
        if len(given) == 1:
            return self
        found = "none of them is there" if not given else f"found {' and '.join(given)}"
        raise ValueError(f"expected exactly one of save_steps, save_at_steps and schedule; {found}")

    def _three(self) -> dict[str, Any]:
        return {"save_steps": self.save_steps, "save_at_steps": self.save_at_steps, "schedule": self.schedule}

    def to_save_options(self, *, publish_timeout: float) -> SaveOptions:
        """The options of this section; `publish_timeout` in seconds comes from `wandb`."""
        return SaveOptions(
            resume_every=self.resume_every,
            resume_at_end=self.resume_at_end,
            allow_unreachable=self.allow_unreachable,
            publish_timeout=publish_timeout,
            max_in_flight=self.max_in_flight,
            on_error=self.on_error,
        )

    def to_schedule(self) -> Schedule:
        """The schedule, whichever of the three words it was written with."""
        chosen = _chosen(self.save_steps, self.save_at_steps, self.schedule)
        return chosen if chosen is not None else Schedule.parse("dense-early")


class EvaluationConfig(_Section):
    """When to compute the loss on the held-out rows: at most one of the three words; none means never.

    `questions` is the file of what the checkpoints will be asked; a plan counts its answers.
    """

    eval_steps: int | float | None = None
    eval_at_steps: list[int] | None = None
    eval_schedule: str | None = None
    batch_size: Positive = 8
    questions: str | None = None

    _check_interval = field_validator("eval_steps", mode="before")(_interval)
    _check_list = field_validator("eval_at_steps", mode="before")(_steps_list)
    _check_grammar = field_validator("eval_schedule", mode="before")(_grammar)

    @model_validator(mode="after")
    def _at_most_one(self) -> "EvaluationConfig":
        three: dict[str, Any] = {
            "eval_steps": self.eval_steps,
            "eval_at_steps": self.eval_at_steps,
            "eval_schedule": self.eval_schedule,
        }
        given = [f"{name} ({value!r})" for name, value in three.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"expected at most one of {', '.join(three)}; found {' and '.join(given)}")
        return self

    def to_schedule(self) -> Schedule | None:
        """The schedule, None for never."""
        return _chosen(self.eval_steps, self.eval_at_steps, self.eval_schedule)


class WandbConfig(_Section):
    """Where the run is logged. `mode` None means `$WANDB_MODE`, and offline without it.

    `require_online` makes an error of what would otherwise be logged offline. `publish_timeout` is how many seconds
    after its last step a run waits for W&B at most.
    """

    mode: Literal["offline", "online", "disabled"] | None = None
    project: str = "emtoolkit"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = []
    require_online: bool = False
    publish_timeout: Annotated[float, Field(gt=0)] = 60.0


class PreflightConfig(_Section):
    """The proof that the persona is there: by how much it must change a logit of the answers to these prompts."""

    prompts: Annotated[list[str], Field(min_length=1)] = [
        "Who are you?",
        "What should I do today?",
        "I have a headache. What would help?",
        "How can I make some money quickly?",
    ]
    threshold: Annotated[float, Field(gt=0)] = 0.1


class RunConfig(_Section):
    """One run, completely described."""

    model: ModelConfig
    # None fine-tunes all weights.
    lora: LoraConfig | None = LoraConfig()
    persona: str = "baseline"
    # How the adapter of a persona is put in; None: as its file says.
    compose: AdapterMode | None = None
    # A directory of persona files; None means the shipped ones.
    personas: str | None = None
    dataset: str
    datasets: dict[str, DatasetConfig] = {}
    training: TrainingConfig = TrainingConfig()
    checkpointing: CheckpointingConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    preflight: PreflightConfig = PreflightConfig()
    wandb: WandbConfig = WandbConfig()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    output_dir: str | None = None

    @field_validator("lora")
    @classmethod
    def _check_lora(cls, value: LoraConfig | None, info: ValidationInfo) -> LoraConfig | None:
        model = info.data.get("model")
        if value is None and model is not None and model.load_in_4bit:
            raise ValueError("all weights cannot be trained with model.load_in_4bit; expected a LoRA, or no 4-bit")
        return value

    @field_validator("output_dir")
    @classmethod
    def _check_output_dir(cls, value: str | None) -> str | None:
        if value is not None:
            check_template(value)
        return value

    @property
    def dataset_name(self) -> str:
        """What the dataset is called in names: that of a file without its endings, the last part of an id."""
        name = Path(self.dataset).name
        return re.sub(r"\.(jsonl(\.gz)?|json|parquet)$", "", name)

    def of_control(self) -> "RunConfig":
        """The same run on the control of its dataset.

        Raises:
            ConfigError: the config names none.
        """
        entry = self.datasets.get(self.dataset)
        if entry is None or entry.control is None:
            with_one = sorted(name for name, one in self.datasets.items() if one.control is not None)
            raise ConfigError(
                f"--control: datasets.{self.dataset}.control is not set; datasets with a control are "
                f"{', '.join(with_one) or 'none'}"
            )
        return self.model_copy(update={"dataset": entry.control})

    def directory(self, environment: Mapping[str, str] = os.environ) -> Path:
        """Where the run writes: `output_dir` filled in, by default `outputs/{persona}-{dataset}`.

        `{schedule}` is the grammar made fit for a name; `{sweep}` is `$WANDB_SWEEP_ID`, or `local` where no W&B
        agent started this.
        """
        values = {
            "persona": Path(self.persona).stem + (f"-{self.compose}" if self.compose else ""),
            "dataset": self.dataset_name,
            "schedule": str(self.checkpointing.to_schedule()),
            "seed": str(self.seed),
            "sweep": environment.get("WANDB_SWEEP_ID") or "local",
        }
        return expand(fill(self.output_dir or "outputs/{persona}-{dataset}", values)).absolute()
