"""W&B's agent reads a sweep file as YAML 1.1, emtoolkit as YAML 1.2: the runs are the same, or the word is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils as wandb_sweeps

from emtoolkit.errors import ConfigError, UserError
from emtoolkit.sweeps.command import command_of, with_environment
from emtoolkit.sweeps.search import read_sweep
from emtoolkit.training.options import TrainOptions
from tests.sweeps.shipped import SWEEPS

WORDS = [
    *("on", "No", "true", "~", "y", "010", "0o10", "0x1F", "-0x1F", "0b11", "1_000", "1_0.5", "1:30", "1e5", "1e-5"),
    *("1.0e-5", "1.5e3", "-.5", ".5", "+1", "1.", "1.10", "3", "2024-01-02", "2024-1-2", "2024-13-45", "=", "12e4567"),
    *(
        ".inf",
        ".nan",
        "0",
        "-0",
        "00",
        "1e999",
        "baseline",
        "'on'",
        '"1e5"',
        "!!str on",
        "[on]",
        "[1e0]",
        "[1]",
        "{a: 1e5}",
        "1_",
        "_1",
    ),
]
KEYS = [
    *(
        "persona",
        "dataset",
        "schedule",
        "seed",
        "control",
        "save_steps",
        "training.learning_rate",
        "training.max_steps",
    ),
    *("training.gradient_checkpointing", "model.revision", "lora.target_modules", "lora.layers-to-transform", "lora.r"),
]
COMMAND = "command: ['${interpreter}', -m, '${program}', train, sandbox, '${args}']\n"


def file_with(tmp_path: Path, parameters: str, command: str = COMMAND) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"method: grid\nprogram: emtoolkit\n{command}parameters:\n  {parameters}\n")
    return path


def settings(words: list[str]) -> Any:
    """What `emtoolkit train` reads in the last of `words`; a refusal is its sentence."""
    try:
        return TrainOptions.from_argv(["sandbox", *words]).to_config({}).model_dump()
    except UserError:
        return "refused"


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        read_sweep(path)
    assert "\n" not in str(raised.value)
    return str(raised.value).removeprefix(f"{path}, ")


@pytest.mark.parametrize("key", KEYS)
def test_a_run_is_the_same_under_the_agent_or_the_word_is_refused(tmp_path: Path, key: str) -> None:
    read = []
    for word in WORDS:
        path = file_with(tmp_path, f"{key}: {{value: {word}}}")
        try:
            sweep = read_sweep(path)
        except ConfigError:
            continue
        (combination,) = sweep.combinations()
        ours = with_environment(command_of(sweep, combination.parameters, Path("x.json")))[-1:]
        arguments = {key: yaml.safe_load(path.read_text())["parameters"][key]}
        agents = wandb_sweeps.create_sweep_command_args({"args": arguments})["args"]
        assert repr(settings(ours)) == repr(settings(agents)), word
        read.append(word)
    # No word that both read alike is refused.
    assert {"true", "~", "3", "baseline", "'on'", "0x1F"} <= set(read)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (
            "persona: {values: [baseline, on]}",
            "line 5: parameters.persona.values: on is true to W&B's agent (YAML 1.1) and the text 'on' to emtoolkit "
            '(YAML 1.2); write true, or "on" in quotes',
        ),
        (
            "seed: {value: 010}",
            "line 5: parameters.seed.value: 010 is the number 8 to W&B's agent (YAML 1.1) and the text '010' to "
            'emtoolkit (YAML 1.2); write 8, or "010" in quotes',
        ),
        (
            "lora: {parameters: {target_modules: {value: [1e-5]}}}",
            "line 5: parameters.lora.parameters.target_modules.value: 1e-5 is the text '1e-5' to W&B's agent (YAML "
            '1.1) and the number 1e-05 to emtoolkit (YAML 1.2); write 1.0e-05, or "1e-5" in quotes',
        ),
        (
            "on: {value: 1}",
            "line 5: parameters: on is true to W&B's agent (YAML 1.1) and the text 'on' to emtoolkit (YAML 1.2); "
            'write "on" in quotes',
        ),
        (
            "dataset: {value: 2024-01-02}",
            "line 5: parameters.dataset.value: 2024-01-02 is a date to W&B's agent (YAML 1.1) and the text "
            "'2024-01-02' to emtoolkit (YAML 1.2); write \"2024-01-02\" in quotes",
        ),
        ("dataset: {value: 2024-13-45}", "2024-13-45 is unreadable to W&B's agent (YAML 1.1) and the text"),
        ("model.revision: {values: [1.10]}", "1.10 is the number 1.1 to W&B's agent (YAML 1.1)"),
        ("x: &x {value: on}\n  control: *x", "line 5: parameters.x.value: on is true"),
        ("control: {<<: {value: on}}", "line 5: parameters.control.value: on is true"),
    ],
)
def test_a_word_with_two_readings_is_named_with_what_to_write(tmp_path: Path, parameters: str, sentence: str) -> None:
    assert sentence in refused(file_with(tmp_path, parameters))


@pytest.mark.parametrize("key", ["project", "entity", "program", "run_cap"])
def test_a_key_of_the_file_has_one_reading_too(tmp_path: Path, key: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"method: grid\nparameters: {{seed: {{value: 1}}}}\n{key}: 1:30\n")
    assert "1:30" in refused(path)


def test_a_word_of_the_command_has_one_reading_too(tmp_path: Path) -> None:
    path = file_with(tmp_path, "seed: {value: 1}", "command: [train.py, --fast, 010]\n")
    assert refused(path).startswith("line 3: command: 010 is the number 8 to W&B's agent")


def test_another_program_may_get_the_same_number_in_other_digits(tmp_path: Path) -> None:
    for word in ("1e-5", "1_000", "-.5"):
        read_sweep(file_with(tmp_path, f"lr: {{value: {word}}}", "command: [train.py, '${args}']\n"))
    assert "0o10" in refused(file_with(tmp_path, "lr: {value: 0o10}", "command: [train.py, '${args}']\n"))


def test_the_ends_of_a_range_are_whole_numbers_as_the_agent_reads_them(tmp_path: Path) -> None:
    found = read_sweep(file_with(tmp_path, "seed: {min: 1_0, max: 1_2}")).combinations()
    assert [combination.parameters["seed"] for combination in found] == [10, 11, 12]


def test_the_shipped_sweeps_are_the_same_in_both_versions_of_yaml() -> None:
    for path in SWEEPS.glob("*.yaml"):
        assert read_sweep(path).combinations()
