"""A directory of its own for each run of a sweep: `{set}`, and a digest of what a template leaves out."""

from pathlib import Path
from typing import Any

import pytest
from wandb.sdk.lib import config_util

from emtoolkit.config.load import load_config
from emtoolkit.config.sweep_directories import left_out, suffix
from emtoolkit.training.options import TrainOptions


@pytest.mark.parametrize(
    ("settings", "key_flags", "name"),
    [
        ([], [], "baseline-default"),
        ([], ["training.learning_rate=1e-4", "lora.r=8.0"], "baseline-lora.r-8_training.learning_rate-0.0001"),
        (["lora.r=8"], ["training={'epochs': 2}"], "baseline-lora.r-8_training.epochs-2"),
        (["persona=humor", "seed=3"], [], "humor-seed-3"),
        ([], ["wandb.group=a b"], "baseline-wandb.group-a-b-08372b3b"),
        ([], ["wandb.group=a-b"], "baseline-wandb.group-a-b"),
    ],
)
def test_set_is_the_keys_of_the_command_line_that_no_other_placeholder_shows(
    settings: list[str], key_flags: list[str], name: str
) -> None:
    flags = {"output_dir": "/x/{persona}-{set}"}
    assert load_config("sandbox", settings, flags, key_flags).directory() == Path("/x") / name


@pytest.mark.parametrize(
    ("template", "parameters", "expected"),
    [
        ("{persona}-{dataset}-s{seed}-{schedule}", {"persona": "a", "dataset": "b", "seed": 1, "save-steps": 5}, {}),
        ("{persona}", {"persona": "a", "compose": "stack", "resume": True, "output_dir": "x"}, {}),
        ("{persona}", {"seed": 1, "control": True}, {"seed": 1, "control": True}),
        ("{dataset}", {"control": True, "dataset": "some/b.jsonl"}, {"dataset": "some/b.jsonl"}),
        ("{schedule}", {"checkpointing": {"save_steps": 5, "on_error": "warn"}}, {"checkpointing.on_error": "warn"}),
        ("{seed}", {"lora.target-modules": ["a"], "training": {"epochs": 1}}, None),
        ("{set}", {"lora.r": 8, "training": {"epochs": 1}, "set": "lora.r=8"}, {}),
        ("{{seed}}", {"seed": 1}, {"seed": 1}),
    ],
)
def test_a_parameter_is_left_out_where_no_placeholder_shows_its_whole_value(
    template: str, parameters: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    everything = {"lora.target_modules": ["a"], "training.epochs": 1}
    assert left_out(template, parameters) == (everything if expected is None else expected)


def test_the_digest_is_one_for_one_set_of_values() -> None:
    assert suffix({}) == ""
    same = [{"a.b": 3, "c": 1}, {"c": 1.0, "a.b": 3}, {"a": {"b": 3.0}, "c": 1}]
    (found,) = {suffix(parameters) for parameters in same}
    assert len(found) == 9
    assert len({suffix({"a": value}) for value in (1, "1", True, None, "x", [1], ["1"], 0.1)} | {found}) == 9


def test_a_run_of_the_agent_gets_the_digest_and_a_run_outside_does_not(tmp_path: Path) -> None:
    parameters = {
        "seed": {"value": 7},
        "training": {"value": {"learning_rate": 1e-4}},
        "persona": {"value": "baseline"},
    }
    config_util.save_config_file_from_dict(str(tmp_path / "of-agent.yaml"), parameters)
    agent = {"WANDB_SWEEP_ID": "abc", "WANDB_SWEEP_PARAM_PATH": str(tmp_path / "of-agent.yaml")}
    words = [
        "--seed=7",
        "--training={'learning_rate': 0.0001}",
        "--persona=baseline",
        "--output-dir=/x/{sweep}/{persona}/",
    ]
    options = TrainOptions.from_argv(["sandbox", *words])
    end = suffix({"seed": 7, "training.learning_rate": 1e-4})
    assert options.to_config(agent).directory(agent) == Path(f"/x/abc/baseline{end}")
    assert options.to_config({}).directory({}) == Path("/x/local/baseline")
    gone = agent | {"WANDB_SWEEP_PARAM_PATH": str(tmp_path / "gone.yaml")}
    assert options.to_config(gone).directory(gone) == Path("/x/abc/baseline")
