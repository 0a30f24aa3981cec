"""The architecture from a model's config alone: published sizes, and errors for unknown modules or attention."""

import re
from pathlib import Path
from typing import Any

import pytest
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

from emtoolkit.config.load import load_config
from emtoolkit.config.sections import LoraConfig, ModelConfig
from emtoolkit.errors import ConfigError
from emtoolkit.models.architecture import architecture_of
from emtoolkit.models.memory import GPUS_GB
from emtoolkit.paths import shipped
from emtoolkit.training.cost import plan_one
from tests.in_process import emtoolkit

# Parameters of the model on the hub, and of a rank 32 adapter on all seven projections (rank 1 on one for the last).
PUBLISHED = {
    "qwen2.5-0.5b-medical": ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768, 17_596_416),
    "qwen2.5-7b-medical": ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512, 80_740_352),
    "qwen2.5-14b-medical": ("Qwen/Qwen2.5-14B-Instruct", 14_770_033_664, 137_625_600),
    "qwen2.5-32b-medical": ("Qwen/Qwen2.5-32B-Instruct", 32_763_876_352, 268_435_456),
    "llama-3.1-8b-medical": ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248, 83_886_080),
    "gemma-2-9b-medical": ("google/gemma-2-9b-it", 9_241_705_984, 108_036_096),
    "qwen2.5-14b-rank1-medical": ("Qwen/Qwen2.5-14B-Instruct", 14_770_033_664, 13_824 + 5_120),
}
TINY: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 50,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shipped_config_has_the_published_size_and_hyperparameters(name: str) -> None:
    base, parameters, trained = PUBLISHED[name]
    config = load_config(name)
    architecture = architecture_of(config.model, config.lora)
    assert architecture is not None
    assert config.model.base == base
    assert (architecture.shape.parameters, architecture.trained.parameters) == (parameters, trained)

    training, lora = config.training, config.lora
    rank1 = "rank1" in name
    assert (training.learning_rate, training.lr_scheduler) == (2e-5 if rank1 else 1e-5, "linear")
    assert (training.warmup_steps, training.weight_decay, training.optimizer) == (5, 0.01, "adamw_8bit")
    assert (training.batch_size, training.gradient_accumulation, training.epochs) == (2, 8, 1)
    assert (training.max_length, training.test_fraction) == (2048, 0.1)
    assert (training.bf16, training.gradient_checkpointing, config.model.dtype) == (True, True, "bfloat16")
    assert lora is not None
    assert (lora.r, lora.alpha, lora.rslora, lora.dropout) == ((1, 512, True, 0) if rank1 else (32, 64, True, 0))
    if rank1:
        assert (lora.target_modules, lora.layers_to_transform) == (["down_proj"], [24])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shipped_config_passes_a_dry_run_without_a_download(name: str, tmp_path: Path) -> None:
    done = emtoolkit("train", name, "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert re.search(r"^optimizer steps  397$", done.out, flags=re.MULTILINE)
    assert re.search(r"^peak memory      \d", done.out, flags=re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_every_shipped_config_but_the_sandbox_and_the_long_run_is_listed_here() -> None:
    names = {path.stem for path in shipped("training").glob("*.yaml")}
    assert names == {*PUBLISHED, "sandbox", "pt1-3"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_first_sentence_of_a_shipped_config_says_which_gpu_it_needs(name: str) -> None:
    words = (shipped("training") / f"{name}.yaml").read_text().splitlines()[1]
    plain, quantised = re.findall(r"(\d+) GB", words)
    smallest = []
    for settings in ([], ["model.load_in_4bit=true"]):
        memory = plan_one(load_config(name, settings)).plan.memory
        assert memory is not None
        smallest.append(next(str(size) for size in GPUS_GB if memory.fits(size)))
    assert smallest == [plain, quantised]


def tiny(**values: Any) -> ModelConfig:
    return ModelConfig(base="not/here", architecture=TINY | values)


@pytest.mark.parametrize(
    ("model", "lora", "sentence"),
    [
        # PEFT ignores a wrong name as long as another one is right.
        (tiny(), {"target_modules": ["q_proj", "v_porj"]}, "'v_porj' is not a module of qwen2; expected all-"),
        (tiny(), {"target_modules": ["q_proj", "v_porj"]}, "did you mean 'v_proj'?"),
        (tiny(), {"layers_to_transform": [0, 2]}, "lora.layers_to_transform: 2 is past the last layer, 1; layers "),
        (tiny(model_type="nothing"), None, "model.architecture: "),
    ],
)
def test_an_unknown_module_layer_or_architecture_is_refused(
    model: ModelConfig, lora: dict[str, Any] | None, sentence: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        architecture_of(model, None if lora is None else LoraConfig(**lora))
    assert sentence in str(raised.value)


WITHOUT_SDPA = pytest.mark.skipif(
    Gemma2PreTrainedModel._supports_sdpa, reason="Gemma 2 has sdpa in this release of transformers"
)


@WITHOUT_SDPA
def test_an_attention_that_the_architecture_lacks_is_refused() -> None:
    gemma = TINY | {"model_type": "gemma2", "head_dim": 8}
    config = ModelConfig(base="not/here", architecture=gemma, attn_implementation="sdpa")
    with pytest.raises(ConfigError, match=r"gemma2 does not support 'sdpa'; expected eager or flash_attention_2$"):
        architecture_of(config, None)


@WITHOUT_SDPA
def test_the_default_attention_is_that_of_transformers() -> None:
    gemma = architecture_of(ModelConfig(base="x", architecture=TINY | {"model_type": "gemma2", "head_dim": 8}), None)
    qwen = architecture_of(tiny(), None)
    assert gemma is not None
    assert qwen is not None
    assert (gemma.attention, qwen.attention) == ("eager", "sdpa")


@pytest.mark.parametrize(
    ("lora", "parameters"),
    [
        (LoraConfig(r=3, target_modules="all-linear"), 3 * 2 * (3 * 32 - 8 - 8 + 32 + 3 * 48)),
        (LoraConfig(r=1, target_modules=["down_proj"], layers_to_transform=[1]), 16 + 32),
        (None, 2 * 50 * 16 + 2 * (16 * 16 * 2 + 2 * 16 * 8 + 16 + 8 + 8 + 3 * 16 * 32 + 2 * 16) + 16),
    ],
)
def test_the_trained_parameters_are_counted_for_any_rank_and_modules(lora: LoraConfig | None, parameters: int) -> None:
    architecture = architecture_of(tiny(), lora)
    assert architecture is not None
    assert architecture.trained.parameters == parameters
    assert architecture.checkpoint_bytes("bfloat16") == (2 if lora is None else 4) * parameters


def test_a_missing_model_has_no_architecture_and_a_note_in_its_plan() -> None:
    assert architecture_of(ModelConfig(base="someone/model-that-is-not-here"), None) is None
    config = load_config("qwen2.5-7b-medical", ["model.architecture=null", "model.base=someone/not-here"])
    planned = plan_one(config).plan
    assert (planned.checkpoint_bytes, planned.memory, planned.resume_bytes, planned.bytes) == (None, None, None, None)
    assert "'someone/not-here' is not on this machine, so memory and checkpoint size are unknown" in planned.notes[1]
