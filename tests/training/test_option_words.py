"""Every key of a config is an option of `emtoolkit train`, in each form in which W&B's agent writes a parameter."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wandb.sdk.launch.sweeps import utils as wandb_sweeps

from emtoolkit.errors import UserError
from emtoolkit.training.options import TrainOptions
from tests.in_process import emtoolkit

WriteConfig = Callable[..., Path]

# Each parameter of a sweep, the key that it sets, and the value of the key.
PARAMETERS: list[tuple[str, Any, str, Any]] = [
    ("training.learning_rate", 1e-5, "training.learning_rate", 1e-5),
    ("training.learning_rate", "1e-4", "training.learning_rate", 1e-4),
    ("training.learning-rate", 3, "training.learning_rate", 3.0),
    ("training", {"learning_rate": 1e-5, "batch_size": 16.0}, "training.batch_size", 16),
    ("training", {"learning_rate": 1e-5}, "training.batch_size", 4),
    ("evaluation", {"eval_steps": 3, "batch_size": 2}, "evaluation.eval_steps", 3),
    ("lora.r", 16.0, "lora.r", 16),
    ("lora.r", "007", "lora.r", 7),
    ("lora.rslora", False, "lora.rslora", False),
    ("lora.target_modules", ["q_proj", "it's"], "lora.target_modules", ["q_proj", "it's"]),
    ("lora.target-modules", "all-linear", "lora.target_modules", "all-linear"),
    ("lora.layers_to_transform", [0, 1], "lora.layers_to_transform", [0, 1]),
    ("lora.layers_to_transform", None, "lora.layers_to_transform", None),
    ("lora", None, "lora", None),
    ("model.architecture", {"hidden_size": 64}, "model.architecture", {"hidden_size": 64}),
    ("model.architecture", {"use_cache": True}, "model.architecture", {"use_cache": True}),
    ("training.max_steps", None, "training.max_steps", None),
    ("wandb.project", "007", "wandb.project", "007"),
    ("wandb.project", "1e-4", "wandb.project", "1e-4"),
    ("wandb.group", "a 'b' \"c\"\n--d = $(e)", "wandb.group", "a 'b' \"c\"\n--d = $(e)"),
    ("wandb.group", "[not a list", "wandb.group", "[not a list"),
    ("wandb.tags", ["--a", "b=c"], "wandb.tags", ["--a", "b=c"]),
    ("datasets.medical-good.rows", None, "datasets.medical-good.rows", None),
    ("checkpointing.save_steps", 5.0, "checkpointing.save_steps", 5),
    ("save_steps", 5, "checkpointing.save_steps", 5),
    ("save_steps", 0.5, "checkpointing.save_steps", 0.5),
    ("schedule", "every:4", "checkpointing.schedule", "every:4"),
    ("compose", None, "compose", None),
    ("seed", 7.0, "seed", 7),
    ("output_dir", "--x/{seed}", "output_dir", "--x/{seed}"),
    ("control", True, "dataset", "medical-good"),
    ("control", False, "dataset", "medical"),
]
MACROS = [
    *("args", "args_no_equals", "args_no_hyphens", "args_no_boolean_flags", "args_json"),
    *("args_append_hydra", "args_override_hydra"),
]


def value_at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return config


def words_of(parameters: dict[str, Any], macro: str) -> list[str]:
    args = wandb_sweeps.create_sweep_command_args({"args": {name: {"value": v} for name, v in parameters.items()}})
    return list(args[macro])


@pytest.mark.parametrize(("name", "value", "key", "expected"), PARAMETERS)
def test_a_parameter_in_every_form_that_the_agent_writes_sets_its_key(
    write_config: WriteConfig, tmp_path: Path, name: str, value: Any, key: str, expected: Any
) -> None:
    config = str(write_config())
    forms = [words_of({name: value, "training.weight_decay": 0.5}, macro) for macro in MACROS]
    (tmp_path / "parameters.json").write_text(json.dumps({name: value, "training.weight_decay": 0.5}))
    for words in [*forms, [str(tmp_path / "parameters.json")]]:
        found = TrainOptions.from_argv([config, "--set=datasets.medical.control=medical-good", *words]).to_config()
        assert value_at(found, key) == expected, words
        assert type(value_at(found, key)) is type(expected), words
        assert found.training.weight_decay == 0.5, words


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "--training.learning_rte=1",
            "--training.learning_rte: unknown key (value '1'); did you mean '--training.learning_rate'?",
        ),
        ("training={'epoch':1}", "--training.epoch: unknown key (value 1); did you mean '--training.epochs'?"),
        ("--wandb.seed=1", "--wandb.seed: unknown key (value '1'); did you mean '--seed'?"),
        ("--lora.r.x=1", "--lora.r.x: unknown key (value '1'); did you mean '--lora.r'?"),
        ("--learning-rate=1", "--learning-rate: no such option; did you mean '--training.learning_rate'?"),
        ("--sede=1", "--sede: no such option; did you mean '--seed'?"),
        ("--zzz=1", "--zzz: no such option; see 'emtoolkit train --help'"),
        ("--lora.r", "--lora.r: requires an argument; see 'emtoolkit train --help'"),
        ("--lora.r=x", "--lora.r: lora.r: 'x' is not valid: input should be a valid integer"),
        ("--wandb=off", "--wandb: wandb: 'off' is not valid: expected a mapping of keys to values"),
        ("--lora.r=0", "--lora.r: lora.r: 0 is not valid: input should be greater than or equal to 1"),
        ("--seed=1.5", "--seed: '1.5' is not valid: "),
        (
            "--training.learning_rate=1e999",
            "--training.learning_rate: training.learning_rate: '1e999' is not valid: input should be a valid number",
        ),
        ("--training.drop_last=x", "--training.drop_last: training.drop_last: 'x' is not valid: input should be a"),
        ("--training.epochs=None", "--training.epochs: training.epochs: 'None' is not valid: input should be a"),
        ("--model.dtype=int8", "--model.dtype: model.dtype: 'int8' is not one of 'float32', 'bfloat16' or 'float16'"),
        ("--lora.target_modules=[1]", "--lora.target_modules: lora.target_modules: [1] is not valid: expected a list"),
        ("--control=x", "--control: 'x' is not valid; expected true or false, or the flag alone"),
        ("--seed=1 --seed=2", "--seed: given as '1' and as '2'; give one of the two"),
        ("--control --control=False", "--control: given as 'True' and as 'False'; give one of the two"),
        ("--set lora.r=2 --lora.r=3", "--lora.r: lora.r is 3 here, and --set lora.r=2 sets lora.r to 2; give one"),
        ("--lora.r 2 --lora.r 3", "--lora.r: lora.r is 3 here, and --lora.r sets lora.r to 2; give one of the two"),
        ("--set lora=null --lora.r=3", "--lora.r: lora.r is 3 here, and --set lora=null sets lora to None; give one"),
        ("--set seed=1 --seed=2", "--seed: seed is 2 here, and --set seed=1 sets seed to 1; give one of the two"),
        ("{", "the JSON after CONFIG: not valid JSON "),
        ("nowhere.json", "nowhere.json: cannot be read "),
    ],
)
def test_a_wrong_option_is_one_sentence_with_the_option_the_value_and_what_is_valid(
    write_config: WriteConfig, words: str, sentence: str
) -> None:
    with pytest.raises(UserError) as raised:
        TrainOptions.from_argv([str(write_config()), *words.split(" ")]).to_config()
    assert str(raised.value).startswith(sentence)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"seed": ' + b"[" * 3000 + b"]" * 3000 + b"}", "not valid JSON (nested more than 100 levels deep)"),
        (b'{"seed": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "not valid JSON (nested more than 100 levels deep)"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not valid JSON (a number has 5,000 digits)"),
        (b'{"seed": "\xff"}', "not valid JSON (not text in UTF-8 (invalid start byte))"),
        (b'{"seed": "\\ud800"}', "not valid JSON (a text holds half a surrogate pair, which no file can hold)"),
        (
            b'{"seed": 1}'.ljust(4_000_001),
            "cannot be read (a size of 4,000,001 bytes; such a file has at most 4,000,000)",
        ),
        (b"[1]", "[1] is not an object of names and values"),
    ],
)
def test_a_parameter_file_that_no_agent_wrote_is_one_sentence(
    write_config: WriteConfig, tmp_path: Path, content: bytes, problem: str
) -> None:
    file = tmp_path / "parameters.json"
    file.write_bytes(content)
    done = emtoolkit("train", write_config(), file, "--dry-run", cwd=tmp_path)
    assert (done.code, done.out, done.err) == (2, "", f"emtoolkit: {file}: {problem}\n")


def test_a_parameter_file_that_is_a_pipe_or_a_device_is_refused_at_once(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "null.json").symlink_to("/dev/null")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "d.json").mkdir()
    for name, found in (("null", "a device"), ("d", "a directory"), ("pipe", "a pipe"), ("zero", "a device")):
        with pytest.raises(UserError) as raised:
            TrainOptions.from_argv([str(write_config()), str(tmp_path / f"{name}.json")])
        assert str(raised.value) == f"{tmp_path / name}.json: cannot be read (expected a file, found {found})"


@pytest.mark.parametrize("value", ["[" * 3000 + "]" * 3000, "9" * 5000])
def test_json_among_the_words_is_read_by_the_same_rules(write_config: WriteConfig, value: str) -> None:
    with pytest.raises(UserError, match=r"^the JSON after CONFIG: not valid JSON [(](nested|a number has 5,000 dig)"):
        TrainOptions.from_argv([str(write_config()), f'{{"seed": {value}}}'])


def test_one_value_may_be_given_twice(write_config: WriteConfig) -> None:
    words = ["--set", "lora={r: 2}", "--lora.r=2", "--seed=3", "--seed", "3", "--set", "seed=3"]
    config = TrainOptions.from_argv([str(write_config()), *words]).to_config()
    assert (config.lora and config.lora.r, config.seed) == (2, 3)


def test_the_last_of_two_settings_wins(write_config: WriteConfig) -> None:
    words = [str(write_config()), "--set", "lora={r: 2, alpha: 4}", "--set", "lora.r=3"]
    lora = TrainOptions.from_argv(words).to_config().lora
    assert lora is not None
    assert (lora.r, lora.alpha) == (3, 4)


def test_the_command_reads_them_too_and_help_names_them_once(write_config: WriteConfig, tmp_path: Path) -> None:
    words = ["--training.max_steps=4", "--save_steps", "2", "--dry_run=True", "--json", "control=False"]
    done = emtoolkit("train", write_config(), *words, cwd=tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out)["steps"] == [2, 4]
    text = " ".join(emtoolkit("train", "--help").out.split())
    assert text.count("--training.learning_rate") == 1
    assert "--key" not in text
