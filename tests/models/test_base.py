"""Base model, then a fresh adapter: where it starts, what a model is known by, how large a checkpoint will be."""

from pathlib import Path

import pytest
import torch

from emtoolkit.config.sections import LoraConfig, ModelConfig, TrainingConfig
from emtoolkit.errors import ConfigError
from emtoolkit.models.base import (
    add_adapter,
    check_can_load,
    device_for,
    effective_optimizer,
    load_base,
    model_path,
)
from emtoolkit.models.base_record import base_identity

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
    assert base_identity(ModelConfig(base=str(copied))).content != first.content


def test_a_hub_id_is_known_by_its_name_and_revision() -> None:
    config = ModelConfig(base="someone/some-model", revision="abc")
    assert base_identity(config).to_json() == {"name": "someone/some-model", "revision": "abc"}
    assert model_path(config) == "someone/some-model"


def test_a_path_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no model \(no config\.json\)"):
        model_path(ModelConfig(base=str(tmp_path)))


def test_8_bit_adamw_is_plain_adamw_where_bitsandbytes_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:

    training = TrainingConfig(optimizer="adamw_8bit")
    monkeypatch.setattr("emtoolkit.models.base.find_spec", lambda name: None)
    assert effective_optimizer(training) == "adamw_torch"
    monkeypatch.setattr("emtoolkit.models.base.find_spec", lambda name: object())
    assert effective_optimizer(training) == "adamw_bnb_8bit"


def test_loading_a_base_model_draws_no_random_number(world: Path) -> None:
    """Its weights are read into their places: nothing is initialised first, to be thrown away."""
    before = torch.get_rng_state()
    load_base(ModelConfig(base=str(world / "model")))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a GPU, which tests have none of: what is asked of torch before anything is put there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


@pytest.mark.usefixtures("a_gpu")
def test_the_model_goes_to_the_gpu_of_this_process() -> None:
    config = ModelConfig(base="a/b")
    assert device_for(config, {}) == torch.device("cuda", 0)
    assert device_for(config, {"LOCAL_RANK": "3"}) == torch.device("cuda", 3)
    assert device_for(ModelConfig(base="a/b", device="cuda"), {"LOCAL_RANK": "3"}) == torch.device("cuda", 3)
    assert device_for(ModelConfig(base="a/b", device="cpu"), {"LOCAL_RANK": "3"}) == torch.device("cpu")


@pytest.mark.usefixtures("a_gpu")
def test_the_model_is_loaded_on_the_gpu_and_not_moved_there(monkeypatch: pytest.MonkeyPatch, world: Path) -> None:

    asked: dict[str, object] = {}
    monkeypatch.setattr("emtoolkit.models.base.load_causal_lm", lambda path, **options: asked.update(options))
    load_base(ModelConfig(base=str(world / "model"), dtype="bfloat16", attn_implementation="sdpa"))
    assert asked == {
        "revision": "main",
        "dtype": "bfloat16",
        "attn_implementation": "sdpa",
        "trust_remote_code": False,
        "device_map": {"": torch.device("cuda", 0)},
    }


def test_without_a_gpu_the_model_goes_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_for(ModelConfig(base="a/b"), {"LOCAL_RANK": "1"}) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"model\.device: 'cuda' needs a GPU, and torch finds none; set it to cpu"):
        device_for(ModelConfig(base="a/b", device="cuda"))


def lacks(*packages: str, **model: object) -> str:

    config = ModelConfig.model_validate({"base": "a/b", **model})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emtoolkit.models.base.find_spec", lambda name: None if name in packages else object())
        with pytest.raises(ConfigError) as raised:
            check_can_load(config, TrainingConfig())
    return str(raised.value)


def test_4_bit_without_bitsandbytes_names_the_extra() -> None:
    assert lacks("bitsandbytes", load_in_4bit=True) == (
        "model.load_in_4bit: True needs bitsandbytes, which is not installed: pip install 'emtoolkit[4bit]'"
    )


def test_flash_attention_that_is_not_installed_or_cannot_work_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    where = "model.attn_implementation: 'flash_attention_2'"
    flash = {"attn_implementation": "flash_attention_2"}
    assert lacks("flash_attn", **flash) == (
        f"{where} needs the package flash-attn, which is not installed; use sdpa or eager"
    )
    assert lacks(**flash, device="cpu") == f"{where} needs a GPU, and the model is loaded on the cpu; use sdpa or eager"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert lacks(**flash) == (
        f"{where} cannot compute in float32; set model.dtype to bfloat16, or training.bf16 to true"
    )


@pytest.mark.usefixtures("a_gpu")
def test_bf16_on_a_gpu_without_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(ConfigError, match=r"training\.bf16: this GPU does not support bfloat16"):
        check_can_load(ModelConfig(base="a/b"), TrainingConfig(bf16=True))


def test_a_base_in_4_bit_is_another_base() -> None:
    config = ModelConfig(base="someone/some-model", load_in_4bit=True)
    assert base_identity(config).to_json() == {
        "name": "someone/some-model",
        "revision": None,
        "load_in_4bit": True,
    }
