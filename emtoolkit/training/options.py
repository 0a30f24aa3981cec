"""The options of `emtoolkit train` as one value: `TrainOptions`, from an argv, and to the `RunConfig` of the run.

The fields of `TrainOptions` are the only declaration of the options. `takes_train_options` gives them to a Typer
command, and `TrainOptions.from_argv` parses with the same parameters, so that the two always accept the same words.
"""

import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, wraps
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.main import get_command

from emtoolkit.errors import UserError
from emtoolkit.training.option_words import plain_words
from emtoolkit.usage_errors import UsageError, usage_sentence

if TYPE_CHECKING:
    from emtoolkit.config.sections import RunConfig

_MODEL, _DATA, _SAVING, _RUN = "Model and persona", "Data", "When to save", "Run and output"


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The options of `emtoolkit train`, with the defaults of those that are not given."""

    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config.")]
    persona: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="The persona to train: a name or a file.", rich_help_panel=_MODEL),
    ] = None
    compose: Annotated[
        str | None,
        typer.Option(metavar="merge|stack", help="How a persona's adapter is added.", rich_help_panel=_MODEL),
    ] = None
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE|ID", help="Dataset of the config, file, or hub id.", rich_help_panel=_DATA),
    ] = None
    control: Annotated[
        bool, typer.Option("--control", help="Train on the dataset's matched control.", rich_help_panel=_DATA)
    ] = False
    schedule: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Steps to save, such as dense-early or 0-150:25.", rich_help_panel=_SAVING),
    ] = None
    save_steps: Annotated[
        str | None,
        typer.Option(
            metavar="STEPS", help="Steps between two saves, or a fraction of the run.", rich_help_panel=_SAVING
        ),
    ] = None
    custom_checkpoints: Annotated[
        bool,
        typer.Option("--custom-checkpoints", help="Save at the default preset, dense-early.", rich_help_panel=_SAVING),
    ] = False
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Seed of the adapter, the split and the data order.", rich_help_panel=_RUN),
    ] = None
    output_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Output directory. Default: outputs/{persona}-{dataset}.", rich_help_panel=_RUN
        ),
    ] = None
    settings: Annotated[
        tuple[str, ...],
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set a config key, such as training.epochs=2.", rich_help_panel=_RUN
        ),
    ] = ()
    key_flags: Annotated[
        tuple[str, ...],
        # Written by `config_key_words`, for words such as `--training.learning_rate=1e-4`.
        typer.Option("--key", metavar="KEY=TEXT", help="Set a config key to a text.", hidden=True),
    ] = ()
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an earlier run that stopped.", rich_help_panel=_RUN)
    ] = False
    reuse: Annotated[
        bool | None,
        typer.Option(
            "--reuse/--no-reuse", help="Take checkpoints of the same trajectory, or train all.", rich_help_panel=_RUN
        ),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, without loading weights.", rich_help_panel=_RUN)
    ] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=_RUN)] = False

    @classmethod
    def from_argv(cls, argv: Sequence[str]) -> "TrainOptions":
        """The options in `argv`, the words after `emtoolkit train`.

        Raises:
            UserError: an unknown option, a missing value, a value of another type, or two values for one option.
        """
        try:
            parser = _parser()
            context = parser.make_context("emtoolkit train", plain_words(argv, parser.params, "emtoolkit train"))
        except UsageError as error:
            raise UserError(usage_sentence(error)) from None
        return _options(context.params)

    @classmethod
    def from_command(cls, command: Sequence[str]) -> "TrainOptions | None":
        """The options of the `emtoolkit train` in `command`, None if `command` runs another program.

        Raises:
            UserError: as `from_argv`.
        """
        for at, (program, subcommand) in enumerate(pairwise(command)):
            if (Path(program).name, subcommand) == ("emtoolkit", "train"):
                return cls.from_argv(command[at + 2 :])
        return None

    def to_config(self, environment: Mapping[str, str] = os.environ) -> "RunConfig":
        """The run that these options describe; `environment` tells whether W&B's agent started it.

        Raises:
            ConfigError: the config file, a setting or an option is not valid; the message names it.
            UserError: more than one option decides when to save.
        """
        from emtoolkit.config.load import load_config
        from emtoolkit.config.sweep_directories import under_agent

        given = [text for text in (self.schedule, self.save_steps) if text not in (None, "None")]
        if len(given) + self.custom_checkpoints > 1:
            raise UserError(
                "--schedule, --save-steps and --custom-checkpoints: each decides when to save; give only one"
            )
        flags = {
            "persona": self.persona,
            "compose": self.compose,
            "dataset": self.dataset,
            "checkpointing.schedule": "dense-early" if self.custom_checkpoints else self.schedule,
            "checkpointing.save_steps": self.save_steps,
            "seed": self.seed,
            "output_dir": self.output_dir,
            "trajectory.reuse": self.reuse,
        }
        config = load_config(self.config, self.settings, flags, self.key_flags)
        return under_agent(config.on_control() if self.control else config, environment)

    def flags_given(self) -> list[str]:
        """The flags whose values differ from the defaults, such as `--save-steps`, in order of declaration."""
        flags = {parameter.name: parameter.opts[0] for parameter in _parser().params}
        if self.key_flags:
            flags["key_flags"] = f"--{self.key_flags[0].partition('=')[0]}"
        return [flags[f.name] for f in fields(self) if f.name != "config" and getattr(self, f.name) != f.default]


def takes_train_options(
    *, without: Collection[str] = (), **replaced: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a Typer command whose first parameter is a `TrainOptions`, filled from the command line.

    The other parameters of the command are its own options.

    Args:
        without: the fields of `TrainOptions` that the command does not offer; they keep their defaults.
        replaced: by field name, a `typer.Option` or `typer.Argument` that replaces the field's own.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        shared = [parameter for parameter in _parameters(replaced) if parameter.name not in without]
        _, *own = inspect.signature(command, eval_str=True).parameters.values()

        @wraps(command)
        def with_options(**values: Any) -> None:
            options = _options({parameter.name: values.pop(parameter.name) for parameter in shared})
            command(options, **values)

        signature = inspect.Signature([*shared, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)])
        with_options.__signature__ = signature  # type: ignore[attr-defined]  # `inspect.signature` reads it
        with_options.__annotations__ = {}
        return with_options

    return decorate


def _parameters(replaced: dict[str, Any]) -> list[inspect.Parameter]:
    """The fields of `TrainOptions` as parameters that Typer understands."""
    hints = get_type_hints(TrainOptions, include_extras=True)
    defaults = inspect.signature(TrainOptions).parameters
    parameters = []
    for name, hint in hints.items():
        kind, declaration = hint.__origin__, replaced.get(name, hint.__metadata__[0])
        # To Typer a tuple is an option with several values at once, and a list one that can be repeated.
        kind = list[str] if kind == tuple[str, ...] else kind
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults[name].default,
                annotation=Annotated[kind, declaration],
            )
        )
    return parameters


def _options(values: dict[str, Any]) -> TrainOptions:
    lists = {name: tuple(values[name] or ()) for name in ("settings", "key_flags")}
    return TrainOptions(**values | lists)


@lru_cache(maxsize=1)
def _parser() -> Any:
    """The Click command that parses the options; it is never run, and has no `--help` of its own."""

    def train(options: TrainOptions) -> None:
        pass

    app = typer.Typer(add_completion=False)
    app.command(add_help_option=False)(takes_train_options()(train))
    return get_command(app)
