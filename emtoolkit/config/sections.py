"""`RunConfig` and its sections: everything that describes one run, checked before anything is loaded."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from emtoolkit.config.hub_names import repository_name
from emtoolkit.config.output_template import check_template, fill, placeholders
from emtoolkit.config.scheduling import CheckpointingConfig, EvaluationConfig
from emtoolkit.config.values import Fraction, KnownGrammar, Positive, Section, TargetModules, finite
from emtoolkit.config.wandb_names import check_project, check_tags
from emtoolkit.errors import ConfigError, located
from emtoolkit.paths import expand
from emtoolkit.personas import AdapterMode
from emtoolkit.schedules.save_options import OnNan


class ModelConfig(Section):
    """The base model and how it is loaded."""

    base: str
    """A directory, or a model id on the Hugging Face hub. `~` and `$NAME` are replaced."""
    revision: str | None = None
    """The branch, tag or commit of a hub id; `null` means `main`. A directory has no revision."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The floating-point type of the weights in memory and in full checkpoints."""
    load_in_4bit: bool = False
    """Quantise the base model for QLoRA: NF4 with double quantisation, computing in bfloat16. Needs a LoRA and the
    package bitsandbytes."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    """The attention kernel. `null` leaves the choice to transformers: `sdpa` where the model supports it, else
    `eager`. `flash_attention_2` needs the package flash-attn and a GPU."""
    trust_remote_code: bool = False
    """Run Python code that the base model brings along (`auto_map` in its `config.json`). Read the code first. The
    fingerprint covers the code."""
    device: Literal["cpu", "cuda"] | None = None
    """Where the model is trained. `null` means the GPU of this process if there is one, else the CPU."""
    architecture: Annotated[dict[str, Any], AfterValidator(finite)] | None = None
    """The keys of the model's `config.json` that `emtoolkit plan` needs while the model is not downloaded: model type,
    layers, sizes. `null` means that the size in memory and on disk is unknown until then."""


class LoraConfig(Section):
    """A new LoRA adapter; the names are PEFT's. The defaults are those of the published fine-tunes."""

    r: Positive = 32
    """The rank."""
    alpha: float = 64.0
    """The scale: the adapter's output is multiplied by `alpha / r`, or by `alpha / sqrt(r)` with `rslora`."""
    rslora: bool = True
    """Use rank-stabilised scaling, `alpha / sqrt(r)`."""
    dropout: Fraction = 0.0
    """The probability of dropout on the adapter's input."""
    target_modules: TargetModules = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """The names of the linear layers to adapt, or `all-linear`: every linear layer except the output layer."""
    layers_to_transform: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """The indices of the transformer layers to adapt, counted from 0; `null` means all layers. Needs
    `target_modules` as a list."""

    @model_validator(mode="after")
    def _check_layers(self) -> "LoraConfig":
        if self.layers_to_transform is not None and self.target_modules == "all-linear":
            raise ValueError("layers_to_transform needs the names of modules in target_modules, found all-linear")
        return self


class DatasetConfig(Section):
    """One dataset: a file, or an id on the Hugging Face hub."""

    path: str
    """A file (`.jsonl`, `.jsonl.gz`, `.json` or `.parquet`), or an id on the hub such as `org/name`. `~` and
    `$NAME` are replaced."""
    split: str | None = None
    """The split of a hub id; `null` means `train`. A file has no split."""
    revision: str | None = None
    """The branch, tag or commit of a hub id; `null` means `main`. A file has no revision."""
    control: str | None = None
    """The matched control, a dataset with other answers to the same prompts, row by row: a name under `datasets`, or a
    path."""
    rows: Positive | None = None
    """The number of rows, so that `emtoolkit plan` works while the data are not here; compared with the data once they
    are."""


class TrainingConfig(Section):
    """The hyperparameters; the defaults are those of the published emergent-misalignment fine-tunes."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """The peak learning rate."""
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """The learning-rate schedule after the warmup."""
    warmup_steps: Annotated[float, Field(ge=0)] = 5
    """The optimizer steps of linear warmup; a value below 1 is a fraction of the run."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """The decoupled weight decay of AdamW."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW, or AdamW with 8-bit states; `adamw_8bit` is plain AdamW where bitsandbytes is not installed."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """The norm to which gradients are clipped; 0 clips nothing."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """How many times the training rows are seen; ignored if `max_steps` is set."""
    max_steps: Positive | None = None
    """The number of optimizer steps; `null` means that `epochs` decides."""
    batch_size: Positive = 2
    """Rows in one forward pass, per process. The rows of one optimizer step are the product of `batch_size`,
    `gradient_accumulation` and the number of processes."""
    gradient_accumulation: Positive = 8
    """Forward and backward passes per optimizer step."""
    drop_last: bool = False
    """Leave out the rows at the end that do not fill an optimizer step."""
    max_length: Positive = 2048
    """The longest row, in tokens. A longer row loses the beginning of its questions, never a part of an answer; it is
    left out if the answers alone do not fit."""
    test_fraction: Fraction = 0.1
    """The fraction of the rows that is held out, rounded up to whole rows; 0 trains on all rows."""
    bf16: bool = False
    """Compute in bfloat16 under autocast."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same weights."""
    deterministic: bool = False
    """Use only deterministic kernels, and no TF32, so that a second training on the same model of GPU gives the same
    bytes. On a CPU a training gives the same bytes without this key."""
    logging_steps: Positive = 10
    """The number of optimizer steps between two logged losses."""
    on_nan: OnNan = "stop"
    """What a loss or weights that are not finite numbers (NaN, infinite) do: `stop` ends training with the step where
    it diverged and leaves the checkpoints before; `continue` trains on. The loss is looked at whenever it is logged,
    and the weights whenever they are saved."""


class WandbConfig(Section):
    """Where the run is logged on Weights & Biases."""

    mode: Literal["offline", "online", "disabled"] | None = None
    """`online` publishes during training, `offline` keeps everything on disk for `emtoolkit sync`, `disabled` logs
    nothing. `null` means `$WANDB_MODE`, or `disabled` where `$WANDB_DISABLED` is true; without these, `online` under a
    sweep agent and `offline` elsewhere."""
    project: str = "emtoolkit"
    """The W&B project: up to 128 characters, none of them one of `/ \\ # ? % :`. Without this key `$WANDB_PROJECT`,
    if set."""
    entity: str | None = None
    """The W&B user or team; `null` means `$WANDB_ENTITY`, or the default entity of the account."""
    group: str | None = None
    """The group of the run; `null` means `$WANDB_RUN_GROUP`, or the collection of the trajectory's checkpoints."""
    tags: list[str] = Field(default=[])
    """Tags of the run beside its persona, dataset and schedule, each of up to 64 characters. Without this key those
    of `$WANDB_TAGS`, if set."""
    require_online: bool = False
    """Fail if the run cannot be logged online; `false` logs it offline with a warning."""
    publish_timeout: Annotated[float, Field(gt=0)] = 60.0
    """How long the run waits for W&B after its last step, in seconds."""

    @field_validator("project")
    @classmethod
    def _check_project(cls, value: str) -> str:
        check_project(value)
        return value

    @field_validator("tags")
    @classmethod
    def _check_tags(cls, value: list[str]) -> list[str]:
        check_tags(value)
        return value


class HubConfig(Section):
    """Whether the checkpoints are pushed to the Hugging Face hub while the run trains."""

    repo: str | None = None
    """The repository, `ORG/REPO`; may contain the placeholders of `output_dir`. `null` pushes nothing."""
    private: bool = True
    """Whether only its owners see a repository that the run makes."""
    push_timeout: Annotated[float, Field(gt=0)] = 60.0
    """How long the run waits for the hub after its last step, in seconds."""

    @field_validator("repo")
    @classmethod
    def _check_repo(cls, value: str | None) -> str | None:
        if value is not None:
            check_template(value)
            if not placeholders(value):
                repository_name(value)
        return value


class PreflightConfig(Section):
    """The check before training that the persona is in the model: it must change the logits of probe answers."""

    prompts: list[str] = Field(
        min_length=1,
        default=[
            "Who are you?",
            "What should I do today?",
            "I have a headache. What would help?",
            "How can I make some money quickly?",
        ],
    )
    """The questions of the probe."""
    threshold: Annotated[float, Field(gt=0)] = 0.1
    """The persona must change at least one logit of the answers by more than this."""


class TrajectoryConfig(Section):
    """Whether a run takes the checkpoints of an earlier training with the same weights, and trains what is missing."""

    reuse: bool | None = None
    """Take checkpoints of the same trajectory from `store`, and train into it. `null` means `true` in `emtoolkit sweep`
    and `false` elsewhere."""
    store: str = "outputs/.trajectories"
    """The directory that holds each checkpoint of each trajectory once. `~` and `$NAME` are replaced."""
    also_save: KnownGrammar | None = None
    """Steps that other runs of the trajectory want: a training saves them into `store`, and not into `output_dir`.
    `emtoolkit sweep` sets the key."""

    @field_validator("store")
    @classmethod
    def _check_store(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("expected a directory, such as outputs/.trajectories")
        return value


class RunConfig(Section):
    """One run, completely described."""

    model: ModelConfig
    """The base model."""
    lora: LoraConfig | None = LoraConfig()
    """The new LoRA adapter; `null` trains all weights."""
    persona: str = "baseline"
    """The persona: the name of a file in `personas`, or the path of a persona file. `baseline` changes nothing."""
    compose: AdapterMode | None = None
    """How the adapter of a persona enters the model: `merge` adds it to the base weights, `stack` keeps it as a second,
    frozen adapter. `null` follows the persona's file."""
    personas: str | None = None
    """A directory of persona files; `null` means the shipped ones."""
    dataset: str
    """The training data: a name under `datasets`, a file, or an id on the hub."""
    datasets: dict[str, DatasetConfig] = Field(default={})
    """The datasets that `dataset`, `--dataset` and `control` can name."""
    training: TrainingConfig = TrainingConfig()
    """The hyperparameters."""
    checkpointing: CheckpointingConfig
    """When to save checkpoints."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """When to compute the loss on the held-out rows."""
    preflight: PreflightConfig = PreflightConfig()
    """The check that the persona is in the model."""
    wandb: WandbConfig = WandbConfig()
    """Where the run is logged."""
    hub: HubConfig = HubConfig()
    """Where the checkpoints are pushed."""
    trajectory: TrajectoryConfig = TrajectoryConfig()
    """Whether checkpoints of an earlier training are taken."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """The seed of the new adapter, of the split into training and held-out rows, and of the order of the data."""
    output_dir: str | None = None
    """Where the run writes; may contain `{persona}`, `{dataset}`, `{schedule}`, `{seed}`, `{sweep}` and `{set}`. `~`
    and `$NAME` are replaced. `null` means `outputs/{persona}-{dataset}`."""

    @field_validator("lora")
    @classmethod
    def _check_lora(cls, value: LoraConfig | None, info: ValidationInfo) -> LoraConfig | None:
        model = info.data.get("model")
        if value is None and model is not None and model.load_in_4bit:
            raise ValueError("a 4-bit base model cannot train all weights; set a LoRA, or model.load_in_4bit: false")
        return value

    @field_validator("output_dir")
    @classmethod
    def _check_output_dir(cls, value: str | None) -> str | None:
        if value is not None:
            check_template(value)
        return value

    _set: str = PrivateAttr(default="default")

    def with_set(self, text: str) -> "RunConfig":
        """The same run in a directory where `{set}` is `text`."""
        copy = self.model_copy()
        copy._set = text
        return copy

    @property
    def template(self) -> str:
        """The directory of the run before its placeholders are filled in."""
        return self.output_dir or "outputs/{persona}-{dataset}"

    @property
    def dataset_name(self) -> str:
        """The dataset in names of runs and directories: a file name without its endings, or the last part of an id."""
        name = Path(self.dataset).name
        return re.sub(r"\.(jsonl(\.gz)?|json|parquet)$", "", name)

    def on_control(self) -> "RunConfig":
        """The same run on the matched control of its dataset.

        Raises:
            ConfigError: the config names no control for the dataset.
        """
        entry = self.datasets.get(self.dataset)
        if entry is None or entry.control is None:
            with_control = sorted(name for name, dataset in self.datasets.items() if dataset.control is not None)
            raise ConfigError(
                f"--control: datasets.{self.dataset}.control is not set; datasets with a control are "
                f"{', '.join(with_control) or 'none'}"
            )
        return self.model_copy(update={"dataset": entry.control})

    def directory(self, environment: Mapping[str, str] = os.environ) -> Path:
        """The absolute directory that the run writes to: `output_dir` filled in.

        `{schedule}` is the schedule as a file name; `{sweep}` is `$WANDB_SWEEP_ID`, or `local` outside a W&B agent;
        `{set}` is what `with_set` gave, `default` without it.
        """
        with located("output_dir"):
            return expand(fill(self.template, self._placeholders(environment))).absolute()

    def hub_repository(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """The repository of `hub.repo`, filled in like `output_dir`; None if there is none.

        Raises:
            ConfigError: what is filled in makes no name of a repository.
        """
        if self.hub.repo is None:
            return None
        with located("hub.repo"):
            return repository_name(fill(self.hub.repo, self._placeholders(environment)))

    def _placeholders(self, environment: Mapping[str, str]) -> dict[str, str]:
        return {
            "persona": Path(self.persona).stem + (f"-{self.compose}" if self.compose else ""),
            "dataset": self.dataset_name,
            "schedule": str(self.checkpointing.to_schedule()),
            "seed": str(self.seed),
            "sweep": environment.get("WANDB_SWEEP_ID") or "local",
            "set": self._set,
        }
