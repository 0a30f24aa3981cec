"""Every architecture that a shipped config uses, tiny and random: trained, saved, loaded, the same logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from emtoolkit.config.load import load_config
from emtoolkit.config.sections import ModelConfig
from emtoolkit.models.base import load_base
from emtoolkit.paths import shipped
from emtoolkit.training import run
from tests.data.published import PUBLISHED, write_tokenizer
from tests.saving.trainings import bytes_of

pytestmark = pytest.mark.slow

WriteConfig = Callable[..., Path]

# gemma3_text, qwen3, mistral, phi3 and olmo2 are not shipped; phi3 has its projections in one layer.
FAMILIES = tuple(PUBLISHED)


def test_every_architecture_of_a_shipped_config_is_among_them() -> None:
    configs = [load_config(path.stem) for path in shipped("training").glob("*.yaml") if path.stem != "sandbox"]
    assert {config.model.architecture["model_type"] for config in configs if config.model.architecture} <= {*FAMILIES}


def write_base(kind: str, directory: Path) -> Path:
    """A model of `kind` with two layers, and a tokenizer with the special tokens that the family publishes."""
    tokenizer = write_tokenizer(kind, directory)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=128,
        original_max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


@pytest.fixture
def trained(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Any, Path]]:
    """Trains a base of one kind into `tmp_path/name`; gives the model as training left it, and the last checkpoint."""

    def train(base: Path, *settings: str, name: str = "out") -> tuple[Any, Path]:
        loaded: list[Any] = []

        def load(config: ModelConfig) -> Any:
            loaded.append(load_base(config))
            return loaded[-1]

        monkeypatch.setattr("emtoolkit.training.composed_model.load_base", load)
        words = ["wandb.mode=disabled", f"model.base={base}", "training.max_steps=3", *settings]
        config = load_config(str(write_config("save_steps: 3")), words, {"output_dir": str(tmp_path / name)})
        run.train(config)
        return loaded[0].eval(), tmp_path / name / "checkpoint-3"

    return train


Trained = Callable[..., tuple[Any, Path]]


def logits(model: Any) -> torch.Tensor:
    # Under bf16 training accelerate leaves autocast around the model's own forward.
    model.forward = getattr(model, "_original_forward", model.forward)
    with torch.no_grad():
        found = model.eval()(input_ids=torch.arange(12).reshape(2, 6)).logits
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_adapter_loads_with_the_logits_that_it_had_in_memory(kind: str, tmp_path: Path, trained: Trained) -> None:
    base = write_base(kind, tmp_path / "base")
    in_memory, checkpoint = trained(base, "lora={r: 4, target_modules: all-linear}")
    before = AutoModelForCausalLM.from_pretrained(base)
    untrained = logits(before)
    loaded = PeftModel.from_pretrained(before, checkpoint)
    assert torch.equal(logits(loaded), logits(in_memory))
    assert not torch.equal(logits(loaded), untrained)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_full_fine_tune_loads_with_the_logits_that_it_had_in_memory(
    kind: str, tmp_path: Path, trained: Trained
) -> None:
    base = write_base(kind, tmp_path / "base")
    in_memory, checkpoint = trained(base, "lora=null")
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert torch.equal(logits(loaded), logits(in_memory))
    assert not torch.equal(logits(loaded), logits(AutoModelForCausalLM.from_pretrained(base)))


@pytest.mark.parametrize(
    "lora",
    [
        "{r: 1, alpha: 512, target_modules: [down_proj], layers_to_transform: [1]}",
        "{r: 100, target_modules: [q_proj, gate_proj]}",
        "{r: 2, target_modules: [lm_head, v_proj]}",
        "{r: 2, target_modules: [embed_tokens]}",
    ],
    ids=["rank-1", "rank-100", "output", "embedding"],
)
def test_an_adapter_of_any_rank_on_any_modules_loads_as_it_was(lora: str, tmp_path: Path, trained: Trained) -> None:
    base = write_base("qwen2", tmp_path / "base")
    in_memory, checkpoint = trained(base, f"lora={lora}")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), checkpoint)
    assert torch.equal(logits(loaded), logits(in_memory))


def test_gradient_checkpointing_changes_no_byte(tmp_path: Path, trained: Trained) -> None:
    base = write_base("qwen2", tmp_path / "base")
    _, plain = trained(base, "lora={r: 4}", name="plain")
    _, checkpointed = trained(base, "lora={r: 4}", "training.gradient_checkpointing=true", name="checkpointed")
    adapters = [bytes_of(path)["adapter_model.safetensors"] for path in (plain, checkpointed)]
    assert adapters[0] == adapters[1]


def test_a_bfloat16_full_fine_tune_under_autocast_loads_as_it_was(tmp_path: Path, trained: Trained) -> None:
    base = write_base("qwen2", tmp_path / "base")
    in_memory, checkpoint = trained(base, "lora=null", "model.dtype=bfloat16", "training.bf16=true")
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(logits(loaded), logits(in_memory))


def test_an_adapter_on_a_4_bit_base_loads_with_the_logits_that_it_had_in_memory(
    tmp_path: Path, trained: Trained
) -> None:
    pytest.importorskip("bitsandbytes", reason="4-bit loading is bitsandbytes'")
    base = write_base("qwen2", tmp_path / "base")
    settings = ("model.load_in_4bit=true", "lora={r: 4, target_modules: all-linear}")
    in_memory, checkpoint = trained(base, *settings, "training.gradient_checkpointing=true")
    config = ModelConfig(base=str(base), load_in_4bit=True)
    again = load_base(config)
    assert str(again.model.layers[0].mlp.up_proj.weight.quant_type) == "nf4"
    assert again.model.layers[0].mlp.up_proj.weight.quant_state.nested
    assert again.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16
    # In eval mode bitsandbytes repacks the weights for some CPUs, and from then on computes with another kernel.
    untrained = logits(again)
    loaded = PeftModel.from_pretrained(again, checkpoint)
    assert torch.equal(logits(loaded), logits(in_memory))
    assert not torch.equal(logits(loaded), untrained)
