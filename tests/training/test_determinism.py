"""`training.deterministic`: what is set while a run trains, what is left behind, and what the fingerprint says."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from emtoolkit.config.load import load_config
from emtoolkit.errors import ConfigError
from emtoolkit.training import run as training_run
from emtoolkit.training.determinism import deterministic_algorithms
from emtoolkit.training.prepare import prepare
from emtoolkit.training.run import train

WriteConfig = Callable[..., Path]
VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC")


def settings() -> dict[str, Any]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (cudnn.deterministic, cudnn.benchmark),
        "tf32": (cudnn.allow_tf32, matmul.allow_tf32),
        "variables": [os.environ.get(name) for name in VARIABLES],
        "fills": torch.utils.deterministic.fill_uninitialized_memory,
    }


def test_only_deterministic_algorithms_are_allowed_inside_and_everything_is_restored() -> None:
    before = settings()
    with deterministic_algorithms(True):
        assert settings() == {
            "algorithms": True,
            "cudnn": (True, False),
            "tf32": (False, False),
            "variables": [":4096:8", "1"],
            "fills": False,
        }
    assert settings() == before
    with deterministic_algorithms(False):
        assert settings() == before


def test_a_workspace_that_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic_algorithms(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with deterministic_algorithms(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":0:0"


def test_an_operation_without_a_deterministic_implementation_is_one_sentence() -> None:
    before = settings()
    sentence = "^training.deterministic: put_ does not have a deterministic implementation; set it to false$"
    with pytest.raises(ConfigError, match=sentence), deterministic_algorithms(True):
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
    assert settings() == before


@pytest.mark.slow
def test_a_deterministic_run_trains_with_these_settings_and_gives_the_weights_of_another_run(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(torch.are_deterministic_algorithms_enabled())

    make_trainer = training_run.make_trainer

    def watched(*args: Any, **kwargs: Any) -> Any:
        trainer = make_trainer(*args, **kwargs)
        trainer.add_callback(Look())
        return trainer

    monkeypatch.setattr(training_run, "make_trainer", watched)
    weights = []
    for name, value in (("plain", "false"), ("deterministic", "true")):
        words = ["wandb.mode=disabled", f"training.deterministic={value}"]
        train(load_config(str(write_config()), words, {"output_dir": str(tmp_path / name)}))
        weights.append((tmp_path / name / "checkpoint-9" / "adapter_model.safetensors").read_bytes())
    assert seen == [False] * 9 + [True] * 9
    assert weights[0] == weights[1]
    records = [json.loads((tmp_path / name / "trajectory.json").read_bytes()) for name in ("plain", "deterministic")]
    assert "deterministic" not in records[0]["decides"]["training"]
    assert records[1]["decides"]["training"]["deterministic"] is True


def test_only_a_deterministic_run_has_another_fingerprint(write_config: WriteConfig) -> None:
    fingerprints = [
        prepare(load_config(str(write_config()), words)).identity.fingerprint
        for words in ([], ["training.deterministic=false"], ["training.deterministic=true"])
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
