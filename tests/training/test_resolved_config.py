"""`config.yaml` in an output directory."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.config.load import load_config
from emtoolkit.config.sections import RunConfig
from emtoolkit.errors import ConfigError
from emtoolkit.training.prepare import prepare
from emtoolkit.training.resolved_config import read_resolved_config, write_resolved_config
from tests.tiny import config_text

WriteConfig = Callable[..., Path]


def _round_trip(config: RunConfig) -> RunConfig:
    directory = config.directory()
    directory.mkdir(parents=True)
    write_resolved_config(config, directory)
    return load_config(str(directory / "config.yaml"))


def test_a_run_leaves_a_config_that_describes_the_same_run(runs: Path) -> None:
    for name in ("prompt", "stack", "full"):
        after = prepare(load_config(str(runs / name / "config.yaml")))
        record = TrajectoryRecord.read_if_any(runs / name)
        assert record is not None
        assert after.identity.fingerprint == record.fingerprint
        assert after.plan.directory == runs / name


def test_relative_paths_become_absolute(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("DATA_HOME", "data")
    (tmp_path / "run.yaml").write_text(config_text(Path(), rest="evaluation: {questions: q.yaml}"))
    config = load_config(
        str(tmp_path / "run.yaml"), ["datasets.medical.path=$DATA_HOME/bad.jsonl"], {"output_dir": str(tmp_path / "o")}
    )
    found = _round_trip(config)
    assert found.model.base == str(world / "model")
    assert found.personas == str(world / "personas")
    assert found.datasets["medical"].path == str(world / "data" / "bad.jsonl")
    assert found.evaluation.questions == str(world / "q.yaml")
    assert (found.dataset, found.persona) == ("medical", "curt")


def test_a_file_as_dataset_or_persona_becomes_absolute(
    world: Path, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    words = ["dataset=data/good.jsonl", "persona=personas/curt.yaml"]
    found = _round_trip(load_config(str(write_config()), words, {"output_dir": str(tmp_path / "o")}))
    assert found.dataset == str(world / "data" / "good.jsonl")
    assert found.persona == str(world / "personas" / "curt.yaml")
    assert found.dataset_name == "good"


def test_hub_ids_stay(write_config: WriteConfig, tmp_path: Path) -> None:
    words = ["model.base=org/model", "datasets={bad: {path: org/data}}", "dataset=bad"]
    found = _round_trip(load_config(str(write_config()), words, {"output_dir": str(tmp_path / "o")}))
    assert (found.model.base, found.datasets["bad"].path) == ("org/model", "org/data")


@pytest.mark.parametrize("name", ["a{b}c", "o", "true", "0o17", "1:30", "~x", "é ü", "a: b # c"])
def test_any_directory_comes_back(write_config: WriteConfig, tmp_path: Path, name: str) -> None:
    config = load_config(str(write_config()))
    directory = tmp_path / name
    directory.mkdir()
    write_resolved_config(config, directory)
    assert load_config(str(directory / "config.yaml")).directory() == directory


@pytest.mark.parametrize("word", ["0o17", "012", "1e3", "on", "null", "1_000", "2024-01-02", "~", "'", "a\nb"])
def test_any_text_comes_back(write_config: WriteConfig, tmp_path: Path, word: str) -> None:
    config = load_config(str(write_config()), [], {"output_dir": str(tmp_path / "o")})
    prompts = config.preflight.model_copy(update={"prompts": [word]})
    assert _round_trip(config.model_copy(update={"preflight": prompts})).preflight.prompts == [word]


def test_null_and_numbers_come_back(write_config: WriteConfig, tmp_path: Path) -> None:
    words = ["lora=null", "training.learning_rate=0.00001", "training.warmup_steps=0.5", "model.dtype=bfloat16"]
    config = load_config(str(write_config()), words, {"output_dir": str(tmp_path / "o")})
    found = _round_trip(config)
    assert found.lora is None
    assert found.training == config.training
    assert found.checkpointing == config.checkpointing


def test_keys_of_wandb_that_are_not_set_stay_those_of_the_environment(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    config = load_config(str(write_config()), ["wandb.mode=disabled"], {"output_dir": str(tmp_path / "o")})
    assert _round_trip(config).wandb.model_fields_set == {"mode"}


def test_a_moved_directory_is_the_runs_directory(write_config: WriteConfig, tmp_path: Path) -> None:
    config = load_config(str(write_config()), [], {"output_dir": str(tmp_path / "o")})
    _round_trip(config)
    os.rename(tmp_path / "o", tmp_path / "moved {seed}")
    assert read_resolved_config(tmp_path / "moved {seed}").directory() == tmp_path / "moved {seed}"


def test_without_the_file_the_error_says_how_to_name_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config.yaml.*--config FILE"):
        read_resolved_config(tmp_path)
