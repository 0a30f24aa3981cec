"""The adapter of a persona: located, identified by its content, checked against the base, merged and stacked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from emtoolkit.checkpoints.manifest import TrajectorySeal
from emtoolkit.checkpoints.records import BaseModelRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.config.sections import LoraConfig, ModelConfig
from emtoolkit.errors import ConfigError
from emtoolkit.models.architecture import architecture_of
from emtoolkit.models.base import add_adapter, compose_model, load_base
from emtoolkit.models.base_record import base_identity
from emtoolkit.models.persona_adapters import PersonaAdapter, check_fits, locate, without_persona
from emtoolkit.models.persona_record import persona_record
from emtoolkit.personas import AdapterMode, AdapterSource, Persona
from tests.tiny import write_adapter

LORA = LoraConfig(r=2, alpha=4, target_modules=["q_proj", "down_proj"])
IDS = torch.tensor([[5, 6, 7, 8]])


def adapter_of(world: Path, name: str = "warm", how: AdapterMode = "merge") -> PersonaAdapter:
    found = locate(AdapterSource(str(world / "characters"), name, composition=how), download=False)
    assert found is not None
    return found


def base_of(world: Path, dtype: Any = "float32") -> Any:
    return load_base(ModelConfig(base=str(world / "model"), dtype=dtype))


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merging_sums_in_float32_and_rounds_once(world: Path, dtype: Any) -> None:
    adapter = adapter_of(world)
    before = {name: weight.clone() for name, weight in base_of(world, dtype).state_dict().items()}
    merged = compose_model(base_of(world, dtype), adapter, None, seed=0).state_dict()
    lora = load_file(adapter.directory / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (lora[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    expected = before[f"{name}.weight"].float() + (b @ a) * (4 / 2)
    assert torch.equal(merged[f"{name}.weight"], expected.to(before[f"{name}.weight"].dtype))
    assert merged.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj", "up_proj"}


def test_merged_and_stacked_the_persona_is_the_same_model(world: Path) -> None:
    bare = logits(add_adapter(base_of(world), LORA, 42))
    merged = logits(compose_model(base_of(world), adapter_of(world), LORA, 42))
    stacked = logits(compose_model(base_of(world), adapter_of(world, how="stack"), LORA, 42))
    assert (merged - stacked).abs().max() < 1e-5
    assert (merged - bare).abs().max() > 0.1


def test_stacked_both_are_active_and_only_the_new_one_is_trained(world: Path) -> None:
    """`from_pretrained` and `add_adapter` alone leave one of them inactive, without a message."""
    model = compose_model(base_of(world), adapter_of(world, how="stack"), LORA, 42)
    assert model.base_model.active_adapters == ["default", "persona"]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".default." in name for name in trained)
    assert all(".persona." not in name for name in trained)


def test_the_new_adapter_starts_the_same_under_every_composition(world: Path) -> None:
    """Loading a persona advances the random generator from which the adapter is drawn."""
    started = []
    for adapter in (None, adapter_of(world), adapter_of(world, "cold"), adapter_of(world, how="stack")):
        model = compose_model(base_of(world), adapter, LORA, 42)
        started.append({name: p for name, p in model.named_parameters() if ".default." in name})
    assert len(started[0]) == 4
    for other in started[1:]:
        assert other.keys() == started[0].keys()
        assert all(torch.equal(started[0][name], other[name]) for name in other)


@pytest.mark.parametrize(("how", "lora"), [("stack", LORA), ("merge", LORA), ("merge", None)])
def test_a_persona_is_removed_temporarily_and_restored_exactly(
    world: Path, how: AdapterMode, lora: LoraConfig | None
) -> None:
    adapter = adapter_of(world, how=how)
    model = compose_model(base_of(world), adapter, lora, 42)
    before = logits(model)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    learns = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    with without_persona(model, adapter) as without:
        assert (logits(without) - logits(base_of(world))).abs().max() < 1e-5
    assert torch.equal(logits(model), before)
    assert dict.fromkeys(weights, True) == {
        name: torch.equal(w, weights[name]) for name, w in model.state_dict().items()
    }
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == learns


def test_an_adapter_is_identified_by_its_content_whatever_its_place_and_the_order_of_its_config(
    world: Path, tmp_path: Path
) -> None:
    """PEFT writes target modules in an order that changes from process to process."""
    copied = tmp_path / "copy" / "warm"
    shutil.copytree(world / "characters" / "warm", copied)
    config = json.loads((copied / "adapter_config.json").read_text())
    config["target_modules"] = sorted(config["target_modules"], reverse=True)
    config["base_model_name_or_path"] = "/somewhere/else"
    (copied / "adapter_config.json").write_text(json.dumps(config))
    copy = locate(AdapterSource(str(tmp_path / "copy"), "warm"), download=False)
    assert copy is not None
    assert copy.content == adapter_of(world).content != adapter_of(world, "cold").content
    config["lora_alpha"] = 8
    (copied / "adapter_config.json").write_text(json.dumps(config))
    louder = locate(AdapterSource(str(tmp_path / "copy"), "warm"), download=False)
    assert louder is not None
    assert louder.content != copy.content


def spoilt(world: Path, tmp_path: Path, change: Callable[[Path], object]) -> AdapterSource:
    shutil.copytree(world / "characters", tmp_path / "characters")
    change(tmp_path / "characters" / "warm")
    return AdapterSource(str(tmp_path / "characters"), "warm")


def edit(directory: Path, **values: Any) -> None:
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(config | values))


def pickled(directory: Path) -> None:
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            shutil.rmtree,
            r"persona: subfolder: .*warm: has no adapter_config.json; subfolders with an adapter: cold",
        ),
        (lambda d: d.rename(d.parent / "wram"), r"adapter: cold, wram; did you mean 'wram'\?"),
        (lambda d: (d / "adapter_config.json").write_text("{"), "adapter_config.json: cannot be read"),
        (lambda d: edit(d, peft_type="IA3"), "a IA3 adapter; only LORA adapters are supported"),
        (pickled, "has no adapter_model.safetensors; pickled weights are not loaded"),
    ],
)
def test_a_directory_without_a_valid_adapter_is_refused(
    world: Path, tmp_path: Path, change: Callable[[Path], object], problem: str
) -> None:
    source = spoilt(world, tmp_path, change)
    with pytest.raises(ConfigError, match=problem):
        locate(source, download=False)


def test_an_adapter_on_the_hub_is_none_in_a_plan_and_an_error_of_an_offline_run() -> None:
    source = AdapterSource("someone/personas", "loving")
    assert locate(source, download=False) is None
    with pytest.raises(ConfigError, match="'someone/personas' is not a directory, and cannot be downloaded"):
        locate(source, download=True)


def test_an_adapter_of_the_hub_is_found_in_the_local_cache_with_its_commit(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--personas"
    shutil.copytree(world / "characters", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    found = locate(AdapterSource("someone/personas", "warm"), download=True)
    assert found is not None
    assert persona_record(Persona("warm", adapter=found.source), found).to_json() == {
        "name": "warm",
        "composition": "merge",
        "system_prompt": None,
        "adapter": "someone/personas",
        "subfolder": "warm",
        "revision": commit,
        "content": adapter_of(world).content,
    }


def test_an_adapter_of_another_shape_is_refused(world: Path, tmp_path: Path) -> None:
    architecture = architecture_of(ModelConfig(base=str(world / "model")), None)
    assert architecture is not None
    shapes = architecture.shapes
    check_fits(adapter_of(world), BaseModelRecord(name="model"), shapes)

    def narrow(directory: Path) -> None:
        path = directory / "adapter_model.safetensors"
        tensors = load_file(path)
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        save_file(tensors | {name: tensors[name][:, :8].contiguous()}, path)

    found = locate(spoilt(world, tmp_path, narrow), download=False)
    assert found is not None
    with pytest.raises(ConfigError, match=r"expects 8 inputs of model\.layers\.0\.self_attn\.q_proj, and model has 16"):
        check_fits(found, BaseModelRecord(name="model"), shapes)
    with pytest.raises(ConfigError, match=r"changes model\.layers\.0\..*, which other does not have"):
        check_fits(adapter_of(world), BaseModelRecord(name="other"), {"lm_head.weight": (4, 4)})


def test_an_adapter_of_another_base_is_refused(world: Path, tmp_path: Path) -> None:
    base = base_identity(ModelConfig(base=str(world / "model")))
    found = locate(
        spoilt(world, tmp_path, lambda d: edit(d, base_model_name_or_path="Qwen/Qwen2.5-7B")), download=False
    )
    assert found is not None
    check_fits(found, BaseModelRecord(name="unsloth/Qwen2.5-7B", revision=None), None)
    with pytest.raises(ConfigError, match=r"was trained on Qwen/Qwen2\.5-7B, and the base model is Qwen/Qwen2\.5-14B"):
        check_fits(found, BaseModelRecord(name="Qwen/Qwen2.5-14B", revision=None), None)

    # An adapter that emtoolkit trained records its base model by content.
    TrajectorySeal(Identity(fingerprinted={}, base_model=base), 1).seal(found.directory, 1)
    check_fits(found, base, None)
    with pytest.raises(ConfigError, match=r"another base model \(model, content [0-9a-f]{8}\) than this one"):
        check_fits(found, base.model_copy(update={"content": "f" * 64}), None)


def test_an_adapter_that_changes_nothing_loads_like_any_other(world: Path, tmp_path: Path) -> None:
    write_adapter(world / "model", tmp_path / "silent", seed=3, strength=0)
    found = locate(AdapterSource(str(tmp_path / "silent")), download=False)
    assert torch.equal(logits(compose_model(base_of(world), found, None, 0)), logits(base_of(world)))
