"""The sections that choose steps: when to save a checkpoint and when to evaluate."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator, model_validator

from emtoolkit.config.values import Grammar, Interval, KnownGrammar, Positive, Section, StepList
from emtoolkit.errors import ConfigError, shown
from emtoolkit.schedules.save_options import OnError, OnNan, SaveOptions
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.terms import Every, EveryFraction
from emtoolkit.stop_signals import NAMES, check_names


def _signal_names(value: object) -> object:
    check_names(value)
    return value


SignalNames = Annotated[
    list[str],
    BeforeValidator(_signal_names),
    WithJsonSchema({"type": "array", "items": {"enum": list(NAMES)}, "minItems": 1}),
]


class CheckpointingConfig(Section):
    """When to save checkpoints: exactly one of `save_steps`, `save_at_steps` and `schedule`."""

    save_steps: Interval | None = None
    """Save at every multiple of this number of steps, as in Hugging Face; a value below 1 is a fraction of the run."""
    save_at_steps: StepList | None = None
    """Save at exactly these steps; step 0 is the model before the first update."""
    schedule: Grammar | None = None
    """Save at the steps of a schedule: terms such as `0-150:25,300-:100`, or the name of a preset."""
    allow_unreachable: bool = SaveOptions.allow_unreachable
    """Only warn about a step that is written out and lies past the end of training; `false` makes it an error."""
    resume_every: str = SaveOptions.resume_every
    """How often the resume state is saved: a time such as `30s`, `10min` or `2h`, a number such as `50 steps`, or
    `never`. A signal saves it, too."""
    signals: SignalNames | None = None
    """Which signals save the state and stop the training, such as `[SIGUSR1]`. SIGINT and SIGTERM always do; `null`
    adds SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU, each only where the program that started this one does not ignore it
    (as `nohup` ignores SIGHUP)."""
    resume_keep: str = SaveOptions.resume_keep
    """Which resume states stay when a newer one is saved and when training ends: those at the steps of a schedule such
    as `every:100`, from which `emtoolkit refine` trains missing steps; `newest` keeps no other."""
    resume_at_end: bool = SaveOptions.resume_at_end
    """Save the resume state of the last step and keep it, so that the run can be continued with more steps."""
    max_in_flight: Annotated[int, Field(json_schema_extra={"minimum": 1})] = SaveOptions.max_in_flight
    """How many copies of the trainable weights may be in memory at a time, waiting for the disk."""
    on_error: OnError = SaveOptions.on_error
    """What a failed save does: `raise` stops training at the next step, `warn` logs a warning and continues."""
    overlap: bool | None = None
    """Copy the weights while the next step computes; `false` copies them before it. The bytes are the same. `null` is
    `true` on a CPU, and `false` on a GPU, where no training with such copies has been compared byte for byte yet."""

    @field_validator("resume_every", "resume_keep", "max_in_flight")
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
        _check_exactly_one(
            {"save_steps": self.save_steps, "save_at_steps": self.save_at_steps, "schedule": self.schedule}
        )
        return self

    def to_save_options(self, *, publish_timeout: float, on_nan: OnNan, on_cpu: bool) -> SaveOptions:
        """The options of this section; `publish_timeout` in seconds comes from `wandb`, `on_nan` from `training`.

        `on_cpu` says that the weights are on a CPU.
        """
        return SaveOptions(
            resume_every=self.resume_every,
            signals=self.signals,
            resume_keep=self.resume_keep,
            resume_at_end=self.resume_at_end,
            allow_unreachable=self.allow_unreachable,
            publish_timeout=publish_timeout,
            max_in_flight=self.max_in_flight,
            on_error=self.on_error,
            on_nan=on_nan,
            overlap=on_cpu if self.overlap is None else self.overlap,
        )

    def to_schedule(self) -> Schedule:
        """The schedule, whichever of the three keys it was written with."""
        chosen = _to_schedule(self.save_steps, self.save_at_steps, self.schedule)
        return chosen if chosen is not None else Schedule.parse("dense-early")


class ProbeConfig(Section):
    """Questions for the model during training: exactly one of `eval_steps`, `eval_at_steps` and `eval_schedule`."""

    questions: str
    """The file of questions, in the format of `emtoolkit evaluate`."""
    eval_steps: Interval | None = None
    """Ask at every multiple of this number of steps; a value below 1 is a fraction of the run."""
    eval_at_steps: StepList | None = None
    """Ask at exactly these steps; step 0 is the model before the first update."""
    eval_schedule: KnownGrammar | None = None
    """Ask at the steps of a schedule, in the same grammar as `checkpointing.schedule`."""
    samples: Positive | None = None
    """Answers to each wording; `null` means as often as the file says."""
    max_new_tokens: Positive = 128
    """The longest answer, in tokens."""
    judge: str | None = None
    """The judge as `package.module:class`, made without arguments, such as `emtoolkit.sandbox.judge:SandboxJudge`;
    `null` means no scores."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "ProbeConfig":
        _check_exactly_one(
            {"eval_steps": self.eval_steps, "eval_at_steps": self.eval_at_steps, "eval_schedule": self.eval_schedule}
        )
        return self


class EvaluationConfig(Section):
    """When to compute the loss on the held-out rows: at most one of `eval_steps`, `eval_at_steps` and `eval_schedule`.

    Without one of the three there is no evaluation during training.
    """

    eval_steps: Interval | None = None
    """Evaluate at every multiple of this number of steps; a value below 1 is a fraction of the run."""
    eval_at_steps: StepList | None = None
    """Evaluate at exactly these steps."""
    eval_schedule: KnownGrammar | None = None
    """Evaluate at the steps of a schedule, in the same grammar as `checkpointing.schedule`."""
    batch_size: Positive = 8
    """The number of held-out rows in one forward pass, per process."""
    questions: str | None = None
    """The file of questions that the checkpoints will be asked, for the estimate of `emtoolkit plan`; `null` counts
    the answers of the published protocol."""
    probe: ProbeConfig | None = None
    """Questions that the model answers during training; the weights do not depend on them."""

    @model_validator(mode="after")
    def _at_most_one(self) -> "EvaluationConfig":
        keys = {
            "eval_steps": self.eval_steps,
            "eval_at_steps": self.eval_at_steps,
            "eval_schedule": self.eval_schedule,
        }
        given = _given(keys)
        if len(given) > 1:
            raise ValueError(f"expected at most one of {', '.join(keys)}; found {' and '.join(given)}")
        return self

    def to_schedule(self) -> Schedule | None:
        """The schedule; None means no evaluation."""
        return _to_schedule(self.eval_steps, self.eval_at_steps, self.eval_schedule)


def _check_exactly_one(keys: dict[str, Any]) -> None:
    if len(given := _given(keys)) != 1:
        *names, last = keys
        found = "none of them is set" if not given else f"found {' and '.join(given)}"
        raise ValueError(f"expected exactly one of {', '.join(names)} and {last}; {found}")


def _given(keys: dict[str, Any]) -> list[str]:
    return [f"{name} ({shown(value)})" for name, value in keys.items() if value is not None]


def _to_schedule(interval: int | float | None, at_steps: list[int] | None, grammar: str | None) -> Schedule | None:
    if interval is not None:
        return Schedule((Every(interval) if isinstance(interval, int) else EveryFraction(interval),))
    if at_steps is not None:
        return Schedule.of(at_steps)
    return Schedule.parse(grammar) if grammar is not None else None
