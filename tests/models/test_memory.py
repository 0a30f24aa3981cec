"""The peak memory from a model's config: each part compared with a real training, the sums with literals."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from emtoolkit.config.load import load_config
from emtoolkit.config.sections import LoraConfig, ModelConfig
from emtoolkit.models.architecture import architecture_of
from emtoolkit.models.base import load_base, peft_lora
from emtoolkit.models.memory import (
    Adapted,
    Memory,
    Setting,
    Shape,
    Trained,
    activations,
    base_weights,
    estimate,
    evaluation,
    layer_activations,
    logits,
    optimizer_states,
)
from emtoolkit.saving.callback import ScheduledCheckpointCallback
from emtoolkit.training.cost import plan_one
from emtoolkit.training.run import train

WriteConfig = Callable[..., Path]
BATCH, LENGTH = 2, 64


def of_kind(kind: str, layers: int) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "vocab_size": 100,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }


def kept_by_autograd(
    architecture: Any,
    lora: LoraConfig | None,
    dtype: torch.dtype,
    *,
    autocast: bool = False,
    checkpointing: bool = False,
) -> int:
    """Bytes of the storages that autograd saves in a forward pass of a new model."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        architecture.config, dtype=dtype, attn_implementation=architecture.attention
    )
    return kept_of(model, lora, autocast=autocast, checkpointing=checkpointing)


def kept_of(model: Any, lora: LoraConfig | None, *, autocast: bool, checkpointing: bool = False) -> int:
    """Bytes of the storages that autograd saves in a forward pass, without the model's own parameters."""
    if lora is not None:
        model = get_peft_model(model, peft_lora(lora))
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept[place] = tensor
        return tensor

    ids = torch.randint(1, 100, (BATCH, LENGTH))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # padding, as in nearly every batch
    cast = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), cast:
        model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


LORA = LoraConfig(r=8, target_modules="all-linear")
KINDS = ("qwen2", "llama", "gemma2", "gemma3_text", "qwen3", "mistral")
USUAL = [("float32", False), ("bfloat16", True)]
CASES = [(kind, lora, *held, False) for kind in KINDS for lora in (LORA, None) for held in USUAL]
CASES += [("qwen2", lora, *held, False) for lora in (LORA, None) for held in (("float32", True), ("bfloat16", False))]
CASES += [("qwen2", lora, *held, True) for lora in (LORA, None) for held in USUAL]


@pytest.mark.parametrize(("kind", "lora", "dtype", "autocast", "checkpointing"), CASES)
def test_layers_save_the_estimated_bytes(
    kind: str, lora: LoraConfig | None, dtype: str, autocast: bool, checkpointing: bool
) -> None:
    real, estimated = [], []
    for layers in (2, 4):  # the difference leaves out what is not a layer's
        model = ModelConfig(base="not/here", dtype=dtype, architecture=of_kind(kind, layers))  # type: ignore[arg-type]
        architecture = architecture_of(model, lora)
        assert architecture is not None
        setting = Setting(
            dtype_bytes=getattr(torch, dtype).itemsize,
            batch=BATCH,
            length=LENGTH,
            autocast=autocast,
            attention=architecture.attention,
            checkpointing=checkpointing,
        )
        options = {"autocast": autocast, "checkpointing": checkpointing}
        real.append(kept_by_autograd(architecture, lora, getattr(torch, dtype), **options))
        estimated.append(activations(architecture.shape, architecture.trained, setting)[0])
    assert (estimated[1] - estimated[0]) / (real[1] - real[0]) == pytest.approx(1, abs=0.05)


def test_under_a_padding_mask_keys_and_values_are_repeated_for_all_heads() -> None:
    kept = []
    for layers in (2, 4):
        model = ModelConfig(base="not/here", architecture=of_kind("qwen2", layers) | {"num_key_value_heads": 2})
        found = architecture_of(model, None)
        assert found is not None
        setting = Setting(dtype_bytes=4, batch=BATCH, length=LENGTH)
        estimated = activations(found.shape, found.trained, setting)[0]
        kept.append((estimated, kept_by_autograd(found, None, torch.float32)))
    (small_estimate, small), (large_estimate, large) = kept
    assert (large_estimate - small_estimate) / (large - small) == pytest.approx(1, abs=0.02)


def test_a_4_bit_base_and_its_layers_take_the_estimated_bytes(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="4-bit loading is bitsandbytes'")
    kept = []
    for layers in (2, 4):
        values = of_kind("qwen2", layers)
        directory = tmp_path / str(layers)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**values)).save_pretrained(directory)
        config = ModelConfig(base=str(directory), load_in_4bit=True)
        found = architecture_of(config, LORA)
        assert found is not None
        setting = Setting(dtype_bytes=4, batch=BATCH, length=LENGTH, four_bit=True, autocast=True)
        base = load_base(config)
        states = [m.weight.quant_state for m in base.modules() if hasattr(getattr(m, "weight", None), "quant_state")]
        scales = sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states)
        weights = sum(parameter.nbytes for parameter in base.parameters()) + scales
        assert base_weights(found.shape, setting) == pytest.approx(weights, rel=0.001)
        estimated = activations(found.shape, found.trained, setting)[0]
        kept.append((estimated, kept_of(base, LORA, autocast=True)))
    (small_estimate, small), (large_estimate, large) = kept
    assert (large_estimate - small_estimate) / (large - small) == pytest.approx(1, abs=0.02)


class Held(TrainerCallback):
    """Bytes of parameters, gradients and optimizer states at the update of the second step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != 1:
            return
        parameters = list(kwargs["model"].parameters())
        self.weights = sum(p.nbytes for p in parameters)
        self.gradients = sum(p.grad.nbytes for p in parameters if p.grad is not None)
        # Without the quantisation map, which all tensors share.
        self.optimizer = sum(
            value.nbytes
            for state in kwargs["optimizer"].state.values()
            for name, value in state.items()
            if isinstance(value, torch.Tensor) and value.dim() > 0 and not name.startswith("qmap")
        )


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """The measured parts of the memory of the test's training."""
    callback = Held()
    original = ScheduledCheckpointCallback.follow

    def follow(self: Any, trainer: Any) -> None:
        trainer.add_callback(callback)
        original(self, trainer)

    monkeypatch.setattr(ScheduledCheckpointCallback, "follow", follow)
    return callback


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize(
    "settings",
    [
        ["lora={r: 3, target_modules: all-linear}"],
        # Matrices of more than 4096 elements, whose states 8-bit AdamW keeps in 8 bits.
        ["lora={r: 300, target_modules: [q_proj, down_proj]}"],
        ["lora=null"],
        ["lora=null", "model.dtype=bfloat16"],
    ],
    ids=["lora", "large-lora", "full", "full-bfloat16"],
)
def test_weights_gradients_and_optimizer_states_are_exact(
    write_config: WriteConfig, tmp_path: Path, held: Held, settings: list[str], optimizer: str
) -> None:
    if optimizer == "adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="8-bit AdamW is bitsandbytes'")
    words = ["wandb.mode=disabled", "training.max_steps=2", f"training.optimizer={optimizer}", *settings]
    config = load_config(str(write_config("save_steps: 2")), words, {"output_dir": str(tmp_path / "out")})
    memory = plan_one(config).plan.memory
    train(config)
    assert memory is not None
    assert (memory.weights, memory.gradients, memory.optimizer) == (held.weights, held.gradients, held.optimizer)


SHAPE = Shape(
    parameters=1_000_000,
    linear=655_360,
    output=100_000,
    hidden=64,
    intermediate=160,
    layers=2,
    heads=4,
    query=64,
    key=32,
    vocabulary=1000,
)


def test_4_bit_weights_take_half_a_byte_and_their_scales_and_the_rest_is_float32() -> None:
    setting = Setting(dtype_bytes=2, batch=1, length=1, four_bit=True)
    # 655,360 / 2, a byte for each 64, and 4 bytes for each 256 of those; 344,640 others in float32.
    assert base_weights(SHAPE, setting) == 327_680 + 10_240 + 160 + 4 * 344_640


def test_8_bit_states_are_bytes_with_a_scale_for_256_but_not_those_of_small_tensors_and_embeddings() -> None:
    trained = Trained(tensors=(4095, 5000, 8192), embeddings=(8192,))
    assert optimizer_states(trained, 2, eight_bit=True) == 2 * (4 * 4095 + (5000 + 4 * 20) + 4 * 8192)
    assert optimizer_states(trained, 2, eight_bit=False) == 2 * 2 * (4095 + 5000 + 8192)


def test_the_loss_takes_three_float32_copies_of_the_logits() -> None:
    """Qwen2.5 at 2 x 2048 tokens: 7.5 GB."""
    qwen = Shape(**{name: getattr(SHAPE, name) for name in SHAPE.__slots__} | {"vocabulary": 152_064})
    assert logits(qwen, Setting(dtype_bytes=2, batch=2, length=2048)) == 12 * 152_064 * 4096


QWEN_7B = Shape(**{name: getattr(SHAPE, name) for name in SHAPE.__slots__} | {"vocabulary": 152_064})
ADAPTER = Trained(tensors=(1000,), adapted=(Adapted(0, "mlp", "up_proj", 64, 2),))


@pytest.mark.parametrize(
    ("options", "bytes_of_a_logit", "kept"),
    [
        ({"dtype_bytes": 4}, 4 + 4, 0),
        ({"dtype_bytes": 2}, 2 + 4 + 4, 0),
        ({"dtype_bytes": 4, "autocast": True}, 2 + 4 + 4, 2 * 1000),
        ({"dtype_bytes": 2, "autocast": True}, 2 + 4 + 4, 2 * 1000),
    ],
    ids=["float32", "bfloat16", "float32 under autocast", "bfloat16 under autocast"],
)
def test_an_evaluation_holds_logits_their_float32_copy_and_log_probabilities(
    options: dict[str, Any], bytes_of_a_logit: int, kept: int
) -> None:
    setting = Setting(batch=2, length=2048, eval_batch=8, **options)
    assert evaluation(QWEN_7B, ADAPTER, setting) == bytes_of_a_logit * 152_064 * 8 * 2048 + kept
    assert estimate(QWEN_7B, ADAPTER, setting).evaluation == evaluation(QWEN_7B, ADAPTER, setting)
    assert estimate(QWEN_7B, ADAPTER, Setting(batch=2, length=2048, **options)).evaluation == 0


def test_the_evaluation_of_a_small_vocabulary_takes_its_largest_layer() -> None:
    small = Shape(**{name: getattr(SHAPE, name) for name in SHAPE.__slots__} | {"vocabulary": 2})
    setting = Setting(dtype_bytes=4, batch=1, length=64, eval_batch=4)
    # Of a layer that saves everything for a backward pass: an upper bound.
    assert evaluation(small, ADAPTER, setting) == layer_activations(small, replace(setting, batch=4), [], full=True)


def test_a_plan_counts_evaluations_only_where_there_are_any(write_config: WriteConfig) -> None:
    memory = []
    for words in ([], ["evaluation.eval_steps=3"], ["evaluation.eval_steps=3", "evaluation.batch_size=16"]):
        planned = plan_one(load_config(str(write_config()), words)).plan.memory
        assert planned is not None
        memory.append(planned)
    assert memory[0].evaluation == 0 < memory[1].evaluation
    assert memory[2].evaluation == 2 * memory[1].evaluation


def test_layers_below_the_first_adapter_save_nothing_without_checkpointing() -> None:
    architecture = of_kind("qwen2", 4)
    kept = []
    for layer in (0, 3):
        lora = LoraConfig(r=1, target_modules=["down_proj"], layers_to_transform=[layer])
        found = architecture_of(ModelConfig(base="not/here", architecture=architecture), lora)
        assert found is not None
        setting = Setting(dtype_bytes=4, batch=BATCH, length=LENGTH)
        estimated = activations(found.shape, found.trained, setting)[0]
        real = kept_by_autograd(found, lora, torch.float32)
        kept.append((estimated, real))
    (low_estimate, low), (high_estimate, high) = kept
    assert (low_estimate - high_estimate) / (low - high) == pytest.approx(1, abs=0.05)


def test_the_peak_is_the_held_memory_and_the_largest_of_the_phases() -> None:
    parts = {
        "weights": 100,
        "gradients": 10,
        "optimizer": 20,
        "activations": 5,
        "recompute": 7,
        "logits": 30,
        "optimizer_step": 10,
    }
    assert Memory(**parts).peak == 100 + 10 + 20 + 5 + 30
    assert Memory(**parts | {"recompute": 40}).peak == 100 + 10 + 20 + 5 + 40
    assert Memory(**parts | {"optimizer_step": 36}).peak == 100 + 10 + 20 + 36
    # The Trainer frees the gradients before an evaluation.
    assert Memory(**parts, evaluation=45).peak == 100 + 10 + 20 + 5 + 30
    assert Memory(**parts, evaluation=50).peak == 100 + 20 + 50


def test_a_gpu_of_24_gb_is_counted_as_24_billion_bytes() -> None:
    parts = {"gradients": 0, "optimizer": 0, "activations": 0, "recompute": 0, "logits": 0, "optimizer_step": 0}
    assert Memory(weights=24_000_000_000, **parts).fits(24)
    assert not Memory(weights=24_000_000_001, **parts).fits(24)
