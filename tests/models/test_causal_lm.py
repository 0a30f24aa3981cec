"""Files of a base or an adapter whose fault shows only when they are loaded: one sentence, and no random weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.in_process import emtoolkit
from tests.tiny import config_text

Tensors = dict[str, Tensor]
pytestmark = pytest.mark.slow


def refusal(world: Path, tmp_path: Path, change: Callable[[Path], Any]) -> str:
    """The sentence of `emtoolkit train` after a `change` of a copy of the `world`; nothing is written."""
    own = Path(shutil.copytree(world, tmp_path / "world"))
    change(own)
    config = tmp_path / "run.yaml"
    config.write_text(config_text(own, rest="wandb: {mode: disabled}"))
    done = emtoolkit("train", config, "--persona", "warm", cwd=tmp_path)
    assert done.code == 2
    assert not (tmp_path / "outputs").exists()
    (sentence,) = [line for line in done.err.splitlines() if line.startswith("emtoolkit: ")]
    return sentence.replace(str(own), "WORLD")


def weights(change: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    def changed(world: Path) -> None:
        file = world / "model" / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return changed


def unpickled(world: Path) -> None:
    (world / "model" / "model.safetensors").unlink()
    (world / "model" / "pytorch_model.bin").write_bytes(b"no pickle")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            weights(lambda found: {f"other.{name}": value for name, value in found.items()}),
            "cannot be loaded (its files lack 15 weights, such as lm_head.weight, which would have random values; the",
        ),
        (
            weights(lambda found: {name: value for name, value in found.items() if "norm" not in name}),
            "cannot be loaded (its files lack 3 weights, such as model.layers.0.input_layernorm.weight, which would",
        ),
        (
            weights(lambda found: found | {"model.norm.weight": found["model.norm.weight"][:-1].clone()}),
            "cannot be loaded (its files have model.norm.weight in the shape (15,), and its config.json says (16,)",
        ),
        (unpickled, "cannot be loaded (Weights only load failed"),
    ],
)
def test_a_base_whose_files_do_not_fit_is_refused(
    world: Path, tmp_path: Path, change: Callable[[Path], Any], sentence: str
) -> None:
    assert f"model.base: 'WORLD/model': {sentence}" in refusal(world, tmp_path, change)


@pytest.mark.parametrize(
    "values",
    [
        {"r": "x"},
        {"r": -1},
        {"r": 10**9},
        {"lora_alpha": "x"},
        {"target_modules": [1, 2]},
        {"target_modules": "((("},
        {"rank_pattern": "x"},
        {"target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]},
    ],
    ids=str,
)
def test_an_adapter_config_with_values_of_other_types_is_one_sentence(
    world: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    def change(own: Path) -> None:
        file = own / "characters" / "warm" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    assert refusal(world, tmp_path, change).startswith("emtoolkit: persona: adapter: WORLD/characters/warm: ")
