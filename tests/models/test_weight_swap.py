"""Weights swapped in place are those of a fresh load to the bit, and where they might not be, nothing is swapped."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from emtoolkit import ModelLoader, Trajectory
from emtoolkit.errors import CheckpointError
from emtoolkit.models.weight_swap import SwappableWeights
from tests.saving.trainings import base_model

IDS = torch.arange(8)[None]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "biases": {"bias": "lora_only", "lora_bias": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "ranks": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 5}},
    "tokens": {"trainable_token_indices": [3, 5]},
}


def saved(directory: Path, name: str, seed: int, **options: Any) -> Path:
    """An adapter with random weights, as PEFT saves it."""
    config = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | options
    model: Any = get_peft_model(base_model(), LoraConfig(**config))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(directory / name)
    return directory / name


def fresh(directory: Path) -> Any:
    return PeftModel.from_pretrained(base_model(), directory).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


def same(one: Any, other: Any) -> bool:
    """Whether two models have the same tensors and logits, to the bit."""
    states = [model.state_dict() for model in (one, other)]
    equal = states[0].keys() == states[1].keys() and all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    return equal and torch.equal(logits(one), logits(other))


@pytest.mark.parametrize("kind", KINDS)
def test_a_swapped_adapter_has_the_bits_of_a_fresh_load(tmp_path: Path, kind: str) -> None:
    first, second = (saved(tmp_path, str(seed), seed, **KINDS[kind]) for seed in (1, 2))
    model = fresh(first)
    weights = SwappableWeights.of_adapter(model, first, "default")
    assert weights is not None
    assert not same(fresh(first), fresh(second))
    for directory in (second, first, first, second):
        assert weights.replace(directory)
        assert same(model, fresh(directory))


@pytest.mark.parametrize("run", ["prompt", "stack", "merge", "full"])
def test_a_loader_swaps_the_checkpoints_of_a_trajectory(runs: Path, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trajectory, loader = Trajectory.open(runs / run), ModelLoader()
    first = loader.load(trajectory[-1]).model
    with monkeypatch.context() as patch:
        patch.setattr(PeftModel, "from_pretrained", None)
        patch.setattr("emtoolkit.models.loading.load_causal_lm", None)
        models = [(loader.load(checkpoint).model, checkpoint) for checkpoint in (trajectory[0], trajectory[-1])]
        assert all(model is first for model, _ in models)
    assert same(first, ModelLoader().load(trajectory[-1]).model)
    assert same(loader.load(trajectory[0]).model, ModelLoader().load(trajectory[0]).model)
    assert not same(first, ModelLoader().load(trajectory[-1]).model)


def test_checkpoints_of_different_kinds_follow_one_another(runs: Path) -> None:
    loader = ModelLoader()
    for run in ("prompt", "full", "stack", "merge", "prompt", "stack", "full", "full"):
        for checkpoint in Trajectory.open(runs / run)[:2]:
            assert same(loader.load(checkpoint).model, ModelLoader().load(checkpoint).model), run


def other_rank(directory: Path) -> Path:
    return saved(directory, "other", 2, r=3)


def other_alpha(directory: Path) -> Path:
    return saved(directory, "other", 2, lora_alpha=7)


def other_modules(directory: Path) -> Path:
    return saved(directory, "other", 2, target_modules=["q_proj"])


def other_dtype(directory: Path) -> Path:
    other = saved(directory, "other", 2)
    weights = other / "adapter_model.safetensors"
    save_file({name: tensor.double() for name, tensor in load_file(weights).items()}, weights)
    return other


def a_tensor_less(directory: Path) -> Path:
    other = saved(directory, "other", 2)
    weights = other / "adapter_model.safetensors"
    save_file(dict(list(load_file(weights).items())[1:]), weights)
    return other


def cut_off(directory: Path) -> Path:
    other = saved(directory, "other", 2)
    weights = other / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    return other


@pytest.mark.parametrize("make", [other_rank, other_alpha, other_modules, other_dtype, a_tensor_less, cut_off])
def test_an_adapter_of_other_settings_or_shapes_is_not_swapped(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    first = saved(tmp_path, "first", 1)
    model = fresh(first)
    weights = SwappableWeights.of_adapter(model, first, "default")
    assert weights is not None
    assert not weights.replace(make(tmp_path))
    assert same(model, fresh(first))


def merged(model: Any) -> None:
    model.merge_adapter()


def merged_and_unmerged(model: Any) -> None:
    model.merge_adapter()
    model.unmerge_adapter()


def disabled(model: Any) -> None:
    model.base_model.disable_adapter_layers()


def another_active(model: Any) -> None:
    model.add_adapter("another", LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    model.set_adapter("another")


def scaled(model: Any) -> None:
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scale_layer(0.5)


def cast(model: Any) -> None:
    model.half()


def another_head(model: Any) -> None:
    head = model.get_output_embeddings()
    model.set_output_embeddings(torch.nn.Linear(head.in_features, head.out_features, bias=False))


def other_weights(model: Any) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.01)


CHANGES = [merged, merged_and_unmerged, disabled, another_active, scaled, cast, another_head, other_weights]


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_swapped_into_a_model_that_somebody_has_changed(
    tmp_path: Path, change: Callable[[Any], None]
) -> None:
    first, second = (saved(tmp_path, str(seed), seed) for seed in (1, 2))
    model = fresh(first)
    weights = SwappableWeights.of_adapter(model, first, "default")
    assert weights is not None
    change(model)
    assert not weights.replace(second)


@pytest.mark.parametrize(
    ("run", "change"),
    [*(("stack", change) for change in CHANGES), *(("full", c) for c in (cast, another_head, other_weights))],
)
def test_a_loader_gives_the_next_checkpoint_whatever_was_done_to_the_last(
    runs: Path, run: str, change: Callable[[Any], None]
) -> None:
    trajectory, loader = Trajectory.open(runs / run), ModelLoader()
    change(loader.load(trajectory[0]).model)
    assert same(loader.load(trajectory[1]).model, ModelLoader().load(trajectory[1]).model)


def test_an_adapter_that_changes_the_base_model_is_not_swapped(tmp_path: Path) -> None:
    first = saved(tmp_path, "first", 1, init_lora_weights="pissa")
    assert SwappableWeights.of_adapter(fresh(first), first, "default") is None


def test_a_full_model_with_another_config_is_loaded_anew(runs: Path, tmp_path: Path) -> None:
    first, last = (Trajectory.open(runs / "full")[index].path for index in (0, -1))
    shutil.copytree(last, tmp_path / "last")
    config = json.loads((last / "config.json").read_text())
    (tmp_path / "last" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    loaded = ModelLoader().load(Trajectory.open(runs / "full")[0]).model
    weights = SwappableWeights.of_model(loaded, first)
    assert weights is not None
    assert not weights.replace(tmp_path / "last")
    assert weights.replace(last)


def test_a_damaged_checkpoint_is_refused_and_the_next_one_is_right(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "prompt", tmp_path / "run")
    trajectory, loader = Trajectory.open(tmp_path / "run"), ModelLoader()
    loader.load(trajectory[0])
    weights = tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="checkpoint-2"):
        loader.load(trajectory[1])
    assert same(loader.load(trajectory[2]).model, ModelLoader().load(trajectory[2]).model)
