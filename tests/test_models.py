"""Base model, then a fresh adapter: where it starts, what a model is known by, how large a checkpoint will be."""

from pathlib import Path

import pytest
import torch

from emtoolkit.config import LoraConfig, ModelConfig, TrainingConfig
from emtoolkit.errors import ConfigError
from emtoolkit.models import add_adapter, base_identity, checkpoint_bytes, effective_optimizer, load_base, model_path

LORA = LoraConfig(r=2, alpha=4, target_modules=["q_proj", "v_proj"])


def test_an_adapter_starts_from_the_seed_alone_whatever_was_drawn_before(world: Path) -> None:
    """Loading a persona draws random numbers, and the adapter would start elsewhere under every one."""
    started = []
    for drawn, seed in ((0, 42), (17, 42), (0, 43)):
        model = load_base(ModelConfig(base=str(world / "model")))
        torch.rand(drawn)
        adapted = add_adapter(model, LORA, seed)
        started.append(torch.cat([p.flatten() for name, p in adapted.named_parameters() if "lora_A" in name]))
    assert torch.equal(started[0], started[1])
    assert not torch.equal(started[0], started[2])


def test_a_local_model_is_known_by_its_content_and_not_by_its_path(world: Path, tmp_path: Path) -> None:
    import shutil

    first = base_identity(ModelConfig(base=str(world / "model")))
    copied = tmp_path / "model"
    shutil.copytree(world / "model", copied)
    assert base_identity(ModelConfig(base=str(copied))) == first
    (copied / "README.md").write_text("other words")
    assert base_identity(ModelConfig(base=str(copied))) == first
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert base_identity(ModelConfig(base=str(copied)))["content"] != first["content"]


def test_a_hub_id_is_known_by_its_name_and_revision() -> None:
    config = ModelConfig(base="someone/some-model", revision="abc")
    assert base_identity(config) == {"name": "someone/some-model", "revision": "abc"}
    assert model_path(config) == "someone/some-model"


def test_a_path_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no model in it"):
        model_path(ModelConfig(base=str(tmp_path)))


def test_the_size_of_an_adapter_follows_from_the_architecture_alone() -> None:
    """Qwen2.5-7B at rank 32 on all projections: 80,740,352 parameters in float32."""
    architecture = {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    }
    config = ModelConfig(base="not/here", architecture=architecture)
    assert checkpoint_bytes(config, LoraConfig()) == 4 * 80_740_352


def test_an_architecture_that_transformers_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.architecture: "):
        checkpoint_bytes(ModelConfig(base="not/here", architecture={"model_type": "nothing"}), None)


def test_8_bit_adamw_is_plain_adamw_where_bitsandbytes_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    training = TrainingConfig(optimizer="adamw_8bit")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert effective_optimizer(training) == "adamw_torch"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert effective_optimizer(training) == "adamw_bnb_8bit"
