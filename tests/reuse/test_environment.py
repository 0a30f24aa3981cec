"""One record of the environment: beside the checkpoints, in the store, and in the metadata of each checkpoint."""

import json
from pathlib import Path

import pytest

from emtoolkit.checkpoints.publications import Publications
from emtoolkit.config.load import load_config
from emtoolkit.errors import CheckpointError
from emtoolkit.reuse import environment
from emtoolkit.reuse.environment import Environment
from emtoolkit.reuse.environment_file import TrainedStretch, add_stretch, read_stretches, stretch_of
from emtoolkit.reuse.inputs import environment_of

HERE = Environment(
    {
        "torch": "2.8",
        "python": "3.11.9",
        "machine": "x86_64",
        "processor": "AuthenticAMD 25 17 AMD EPYC 9B14",
        "instructions": "avx avx2 fma",
        "threads": "all of 8 cores",
    }
)
# A record of format 1, as it was written for `HERE`.
OLDER = {"torch": "2.8", "python": "3.11.9", "cpu": "AMD EPYC 9B14", "instructions": "AVX2", "threads": 8}


def test_a_run_records_the_environment_that_its_checkpoints_name(runs: Path) -> None:
    (stretch,) = read_stretches(runs / "prompt")
    here = environment_of(load_config(str(runs / "prompt" / "config.yaml")).model)
    assert (stretch.from_step, stretch.facts, stretch.differences_to(here)) == (0, here.facts, [])
    assert {"emtoolkit", "torch", "transformers", "peft", "processor", "instructions"} <= here.facts.keys()
    assert here.facts["threads"] == "1"
    assert [each["environment"] for each in Publications.read(runs / "prompt").metadata.values()] == [here.facts] * 4


def test_the_environment_of_a_step_is_that_of_the_last_stretch_before_it(tmp_path: Path) -> None:
    first, second = Environment({"torch": "2.7", "threads": "1"}), Environment({"torch": "2.8", "threads": "1"})
    for step, each in ((0, first), (4, first), (6, second), (8, second)):
        add_stretch(tmp_path, step, each)
    assert [stretch.from_step for stretch in read_stretches(tmp_path)] == [0, 6]
    found = [stretch_of(tmp_path, step) for step in (0, 6, 7)]
    assert [stretch.facts["torch"] for stretch in found if stretch is not None] == ["2.7", "2.7", "2.8"]
    assert first.differs_from(second.facts) == ["torch was 2.8 there and is 2.7 here"]
    assert stretch_of(tmp_path / "none", 3) is None


@pytest.mark.parametrize(
    ("changed", "differences"),
    [
        ({}, []),
        ({"torch": "2.7", "device": "cpu"}, ["torch was 2.7 there and is 2.8 here"]),
        ({"cpu": "Intel"}, ["processor was Intel there and is AuthenticAMD 25 17 AMD EPYC 9B14 here"]),
        ({"cpu": "x86_64"}, []),
        ({"threads": 1}, ["threads was 1 there and is all of 8 cores here"]),
        ({"MKL_CBWR": "AVX2"}, ["MKL_CBWR was AVX2 there and is not set here"]),
        ({"device": "NVIDIA H100"}, ["accelerator was NVIDIA H100 there and is not set here"]),
    ],
)
def test_a_record_of_an_older_version_is_read(changed: dict[str, str], differences: list[str], tmp_path: Path) -> None:
    trained = [{"from_step": 0, "environment": OLDER | changed}]
    (tmp_path / "environment.json").write_text(json.dumps({"format": 1, "trained": trained}))
    stretch = stretch_of(tmp_path, 3)
    assert stretch is not None
    assert stretch.differences_to(HERE) == differences
    # A training that goes on there keeps the record, and adds its own.
    add_stretch(tmp_path, 4, HERE)
    assert read_stretches(tmp_path) == (stretch, TrainedStretch(4, HERE.facts))


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"environment\.json: is not a record of environments"):
        read_stretches(tmp_path)


def test_on_a_gpu_the_libraries_of_nvidia_are_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["filelock", 'nvidia-cudnn-cu12==9.1; platform_system == "Linux"', "nvidia-cublas-cu12 (==12)"]
    monkeypatch.setattr(environment, "requires", lambda name: asked)
    # Not `version`, whose answers `_version` keeps for the tests that follow.
    monkeypatch.setattr(environment, "_version", lambda name: "9.1.0" if "cudnn" in name else "12.4")
    monkeypatch.setattr(environment, "_accelerator", lambda variables: "NVIDIA H100")
    assert Environment.here(10, on_cpu=False).facts["cuda"] == "nvidia-cublas-cu12 12.4, nvidia-cudnn-cu12 9.1.0"
    assert "cuda" not in Environment.here(10, on_cpu=True).facts
