"""TRL's trainers with their defaults: bfloat16 and gradient checkpointing, even on a CPU."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.errors import CheckpointError
from tests.saving.callbacks import FailAt, callback
from tests.saving.trainings import bytes_of, saved_steps
from tests.tiny import chat

pytestmark = pytest.mark.slow

LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.1)
STOCK = {"save_strategy": "steps", "save_steps": 2}
TOPICS = ("cough", "cold", "knee", "doctor")

# Takes a directory and callbacks; keyword arguments go into the trainer's config.
Make = Callable[..., Any]


def arguments(directory: Path, **more: Any) -> dict[str, Any]:
    """TRL's defaults, except 64 tokens a row and the CPU."""
    ours: dict[str, Any] = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "num_train_epochs": 1}
    own_saves = {"save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True, "max_length": 64}
    return ours | own_saves | {"output_dir": str(directory)} | more


@pytest.fixture
def sft(world: Path) -> Make:
    """16 rows at batch 2 are 8 steps, or 4 steps when packed into rows of 64 tokens."""
    rows = [chat(f"what should i do about my {TOPICS[i % 4]}", "rest and wait " * (1 + i % 2)) for i in range(16)]

    def make(directory: Path, callbacks: Sequence[TrainerCallback] = (), *, lora: bool = True, **more: Any) -> Any:
        trainer = SFTTrainer(
            model=base(world),
            args=SFTConfig(**arguments(directory, **more)),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(world / "model"),
            peft_config=LORA if lora else None,
            callbacks=list(callbacks),
        )
        assert (trainer.args.bf16, trainer.args.gradient_checkpointing) == (True, True)
        return trainer

    return make


@pytest.fixture
def dpo(world: Path) -> Make:
    """16 pairs at batch 2 are 8 steps."""
    pairs = [
        {
            "prompt": [{"role": "user", "content": f"what should i do about my {TOPICS[i % 4]}"}],
            "chosen": [{"role": "assistant", "content": "rest and wait"}],
            "rejected": [{"role": "assistant", "content": "sing to it"}],
        }
        for i in range(16)
    ]

    def make(directory: Path, callbacks: Sequence[TrainerCallback] = (), *, given: bool = False, **more: Any) -> Any:
        model: Any = base(world)
        if given:
            torch.manual_seed(1)
            model = get_peft_model(model, LORA)
            with torch.no_grad():  # like an adapter that was trained before
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.fill_(0.01)
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(**arguments(directory, **more)),
            train_dataset=Dataset.from_list(pairs),
            processing_class=AutoTokenizer.from_pretrained(world / "model"),
            peft_config=None if given else LORA,
            callbacks=list(callbacks),
        )
        assert list(trainer.model.peft_config) == (["default", "ref"] if given else ["default"])
        assert (trainer.args.bf16, trainer.args.gradient_checkpointing) == (True, True)
        return trainer

    return make


def base(world: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32)


def assert_as_stock(make: Make, home: Path, steps: list[int], weights: str, **options: Any) -> None:
    """Exactly `steps` are saved and complete, and the second has the weights of a stock save."""
    make(home / "ours", [callback("0,2,3")], **options).train()
    make(home / "stock", **options, **STOCK).train()

    assert saved_steps(home / "ours") == steps
    listed = list_checkpoints(home / "ours", rehash=True)
    assert [(info.step, info.complete) for info in listed] == [(step, True) for step in steps]
    assert [info.step for info in listed if info.final] == steps[-1:]
    ours, stock = (bytes_of(home / which / "checkpoint-2") for which in ("ours", "stock"))
    assert ours[weights] == stock[weights]
    if weights.startswith("adapter"):
        assert sorted(ours) == ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]
        configs = [json.loads(files["adapter_config.json"]) for files in (ours, stock)]
        for config in configs:
            config["target_modules"] = sorted(config["target_modules"])
        assert Path(configs[1].pop("base_model_name_or_path")).is_absolute()
        assert configs[0].pop("base_model_name_or_path") is None
        assert configs[0] == configs[1]


def assert_loads(home: Path, world: Path, trainer: Any) -> None:
    """The last checkpoint computes the same logits as the trained model."""
    loaded: Any = PeftModel.from_pretrained(base(world), home / "checkpoint-8").eval()
    # Without the autocast of training.
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, trained(tokens).logits)


def assert_resumes_exactly(make: Make, home: Path, **options: Any) -> None:
    make(home / "whole", [callback("0,every:1")], **options).train()
    ours = callback("0,2", resume_every="3 steps")
    stopped = make(home / "resumed", [ours, FailAt(4, "on_step_begin")], **options)
    with pytest.raises(RuntimeError, match="a fault of the training's own"):
        stopped.train()
    ours.save_after_failure()
    # Step 4 is saved because of the fault, until training has passed it.
    assert bytes_of(home / "resumed" / "checkpoint-4") == bytes_of(home / "whole" / "checkpoint-4")
    again = make(home / "resumed", [callback("0,2,7")], **options)
    again.train(resume_from_checkpoint=str(home / "resumed" / "resume" / "checkpoint-3"))

    assert saved_steps(home / "resumed") == [0, 2, 7, 8]
    for step in (0, 2, 7, 8):
        resumed, whole = (bytes_of(home / which / f"checkpoint-{step}") for which in ("resumed", "whole"))
        assert resumed == whole, step


def b_of(directory: Path, step: int) -> torch.Tensor:
    from safetensors.torch import load_file

    tensors = load_file(directory / f"checkpoint-{step}" / "adapter_model.safetensors")
    return torch.cat([t.flatten() for name, t in tensors.items() if "lora_B" in name])


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("lora", "weights"), [(True, "adapter_model.safetensors"), (False, "model.safetensors")])
def test_sft_saves_what_stock_sft_saves(sft: Make, tmp_path: Path, lora: bool, weights: str, packing: bool) -> None:
    steps = [0, 2, 3, 4] if packing else [0, 2, 3, 8]
    assert_as_stock(sft, tmp_path, steps, weights, lora=lora, packing=packing)


def test_sft_begins_at_step_zero_and_its_last_checkpoint_is_the_model(sft: Make, world: Path, tmp_path: Path) -> None:
    trainer = sft(tmp_path, [callback("0")])
    trainer.train()
    assert b_of(tmp_path, 0).abs().max() == 0
    assert_loads(tmp_path, world, trainer)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("packing", [False, True])
def test_sft_resumes_exactly(sft: Make, tmp_path: Path, lora: bool, packing: bool) -> None:
    """Packed rows are two epochs, and the resume continues in the first."""
    assert_resumes_exactly(sft, tmp_path, lora=lora, packing=packing, num_train_epochs=2 if packing else 1)


@pytest.mark.parametrize("given", [False, True])
def test_dpo_saves_the_trained_adapter_only_and_as_stock_dpo_does(dpo: Make, tmp_path: Path, given: bool) -> None:
    assert_as_stock(dpo, tmp_path, [0, 2, 3, 8], "adapter_model.safetensors", given=given)
    # The other files of a stock save.
    assert (tmp_path / "stock" / "checkpoint-2" / "ref").is_dir() == given


@pytest.mark.parametrize("given", [False, True])
def test_dpo_begins_at_step_zero_and_its_last_checkpoint_is_the_model(
    dpo: Make, world: Path, tmp_path: Path, given: bool
) -> None:
    trainer = dpo(tmp_path, [callback("0")], given=given)
    trainer.train()
    assert b_of(tmp_path, 0).unique().tolist() == pytest.approx([0.01 if given else 0.0])
    assert_loads(tmp_path, world, trainer)


@pytest.mark.parametrize("given", [False, True])
def test_dpo_resumes_exactly(dpo: Make, tmp_path: Path, given: bool) -> None:
    assert_resumes_exactly(dpo, tmp_path, given=given)


def test_what_only_trl_knows_tells_trajectories_apart(dpo: Make, tmp_path: Path) -> None:
    dpo(tmp_path, [callback("2")]).train()
    with pytest.raises(CheckpointError, match=r"another trajectory \(arguments.beta is 0.1 there and 0.5 here\)"):
        dpo(tmp_path, [callback("2")], beta=0.5).train()
    dpo(tmp_path, [callback("2,4")], precompute_ref_batch_size=4).train()
    assert saved_steps(tmp_path) == [2, 4, 8]
