"""`TrainOptions`: from an argv to a value, and from the value to the config of the run."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import pytest
from typer.main import get_command

from emtoolkit.cli.app import app
from emtoolkit.errors import UserError
from emtoolkit.training.options import TrainOptions

WriteConfig = Callable[..., Path]


def test_an_argv_becomes_a_value() -> None:
    argv = "sandbox --persona goodness --dataset=medical --save-steps .1 --seed 7 --set a=1 --resume --set b=2 --json"
    assert TrainOptions.from_argv(argv.split()) == TrainOptions(
        config="sandbox",
        persona="goodness",
        dataset="medical",
        save_steps=".1",
        seed=7,
        settings=("a=1", "b=2"),
        resume=True,
        as_json=True,
    )


def test_every_field_but_the_config_can_be_given_as_a_flag() -> None:
    texts = ["persona", "compose", "dataset", "schedule", "save-steps", "output-dir", "set", "key"]
    switches = ["control", "custom-checkpoints", "resume", "reuse", "dry-run", "json"]
    argv = ["sandbox", "--seed", "1", *(f"--{name}=x" for name in texts), *(f"--{name}" for name in switches)]
    options = TrainOptions.from_argv(argv)
    assert [f.name for f in fields(options) if getattr(options, f.name) == f.default] == []


@pytest.mark.parametrize(
    ("words", "reuse"),
    [
        ((), None),
        (("--reuse",), True),
        (("--no-reuse",), False),
        (("--no_reuse",), False),
        (("--reuse=true",), True),
        (("--reuse=False",), False),
        (("--reuse", "false"), False),
    ],
)
def test_reuse_is_on_off_or_left_to_the_config(words: Sequence[str], reuse: bool | None) -> None:
    options = TrainOptions.from_argv(["sandbox", *words])
    assert options.reuse is reuse
    assert options.to_config().trajectory.reuse is reuse


def test_a_given_flag_is_named_as_it_is_typed() -> None:
    argv = ["sandbox", "--set", "seed=1", "--control", "--save-steps", "5"]
    assert TrainOptions.from_argv(argv).flags_given() == ["--control", "--save-steps", "--set"]
    assert TrainOptions.from_argv(["sandbox", "--lora.r=8"]).flags_given() == ["--lora.r"]
    assert TrainOptions("sandbox").flags_given() == []


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["sandbox", "--persnoa", "x"], "--persnoa: no such option; did you mean '--persona'?"),
        ([], "CONFIG: missing; see 'emtoolkit train --help'"),
        (
            ["sandbox", "medical"],
            "emtoolkit train: got unexpected extra argument(s) (medical); see 'emtoolkit train --help'",
        ),
        (["sandbox", "--persona"], "--persona: requires an argument; see 'emtoolkit --help'"),
    ],
)
def test_a_usage_error_names_the_word(argv: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        TrainOptions.from_argv(argv)
    assert str(raised.value) == sentence


def test_a_command_is_recognised_by_its_program_and_its_subcommand() -> None:
    words = ["/usr/bin/env", "/opt/bin/emtoolkit", "train", "sandbox", "--seed=3"]
    assert TrainOptions.from_command(words) == TrainOptions("sandbox", seed=3)
    assert TrainOptions.from_command(["python", "train.py", "--seed=3"]) is None
    assert TrainOptions.from_command(["emtoolkit", "sandbox", "train"]) is None


def test_options_override_the_config_file(write_config: WriteConfig) -> None:
    options = TrainOptions(str(write_config()), persona="goodness", save_steps="5", seed=3, settings=("lora.r=2",))
    config = options.to_config()
    assert (config.persona, config.seed, config.checkpointing.save_steps) == ("goodness", 3, 5)
    assert config.lora is not None
    assert config.lora.r == 2


def test_custom_checkpoints_is_the_default_preset(write_config: WriteConfig) -> None:
    config = TrainOptions(str(write_config()), custom_checkpoints=True).to_config()
    assert config.checkpointing.schedule == "dense-early"


def test_only_one_option_decides_when_to_save(write_config: WriteConfig) -> None:
    options = TrainOptions(str(write_config()), schedule="every:2", save_steps="5")
    with pytest.raises(UserError, match=r"^--schedule, --save-steps and --custom-checkpoints: .*; give only one$"):
        options.to_config()


def test_the_command_takes_exactly_the_fields() -> None:
    train = get_command(app).commands["train"]  # type: ignore[attr-defined]
    assert [parameter.name for parameter in train.params] == [field.name for field in fields(TrainOptions)]
    plan = get_command(app).commands["plan"]  # type: ignore[attr-defined]
    offered = {parameter.name for parameter in plan.params}
    only_of_plan = {"count", "detect", "rate", "questions", "samples"}
    assert offered == {field.name for field in fields(TrainOptions)} - {"resume", "dry_run"} | only_of_plan
