"""The files of a checkpoint hold what a user loads again, whatever kind of model the Trainer was given."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig, PeftModel, PromptEncoderConfig, PromptTuningConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file, load_model
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from emtoolkit.errors import CheckpointError, ConfigError
from emtoolkit.saving import snapshot
from emtoolkit.saving.adapter_state import model_state
from emtoolkit.saving.sharded import ShardedSaving, is_sharded
from emtoolkit.saving.snapshot import SnapshotBuffers
from tests.saving.callbacks import StopAt, callback
from tests.saving.trainings import VOCABULARY, base_model, lora_model, make_trainer

IDS = torch.arange(8)[None]
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def trained(model: Any, directory: Path, **options: Any) -> Path:
    """The last checkpoint of two steps of `model`."""
    make_trainer(directory, [callback("0-2:1", publish=False)], model=model, max_steps=2, **options).train()
    return directory / "checkpoint-2"


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(input_ids=IDS).logits
    return result


class Plain(nn.Module):
    """A language model that is no PreTrainedModel, with a head tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        scores = self.head(self.embedding(input_ids))
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), input_ids.flatten())
        return {"loss": loss, "logits": scores}


def test_a_plain_module_loads_with_its_tied_weights(tmp_path: Path) -> None:
    model = Plain()
    checkpoint = trained(model, tmp_path)
    again = Plain()
    load_model(again, str(checkpoint / "model.safetensors"))
    assert torch.equal(again.head.weight, model.head.weight)
    assert not torch.equal(again.head.weight, Plain().head.weight)
    assert again.head.weight is again.embedding.weight


def test_an_adapter_on_a_plain_module_loads(tmp_path: Path) -> None:
    model = get_peft_model(Plain(), LoraConfig(r=2, target_modules=["head"]))
    checkpoint = trained(model, tmp_path)
    again = PeftModel.from_pretrained(Plain(), checkpoint).eval()
    assert torch.equal(again(IDS)["logits"], model.eval()(IDS)["logits"])


def test_an_adapter_that_transformers_added_loads_with_peft_and_with_transformers(tmp_path: Path) -> None:
    model = base_model()
    try:
        model.add_adapter(LORA)
    except ValueError as error:
        if "version of PEFT" not in str(error):
            raise
        pytest.skip("transformers 5.24 adds and loads adapters with PEFT 0.22 only, which is not published yet")
    checkpoint = trained(model, tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base_model(), checkpoint)), logits(model))
    again = base_model()
    again.load_adapter(str(checkpoint))
    assert torch.equal(logits(again), logits(model))


def test_an_adapter_that_was_injected_loads(tmp_path: Path) -> None:
    model = inject_adapter_in_model(LORA, base_model())
    checkpoint = trained(model, tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base_model(), checkpoint)), logits(model))


def test_the_adapter_of_a_compiled_model_loads(tmp_path: Path) -> None:
    model = lora_model()
    checkpoint = trained(torch.compile(model, backend="eager"), tmp_path, remove_unused_columns=False)
    assert torch.equal(logits(PeftModel.from_pretrained(base_model(), checkpoint)), logits(model))


def test_a_compiled_full_model_is_saved_under_the_names_of_the_model(tmp_path: Path) -> None:
    model = base_model()
    with torch.no_grad():
        model.get_input_embeddings().weight += 1
    state = model_state(torch.compile(model, backend="eager"))
    state.writer()(tmp_path, SnapshotBuffers(state, max_in_flight=1).take(0).tensors)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_a_model_that_is_compiled_in_place_keeps_its_names() -> None:
    model = lora_model()
    names = list(model_state(model).tensors)
    model.compile(backend="eager")
    assert list(model_state(model).tensors) == names


def test_a_module_that_is_compiled_by_itself_is_refused() -> None:
    model = base_model()
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    with pytest.raises(CheckpointError, match=r"'model.layers.0' is wrapped by torch.compile.*\.compile\(\)"):
        model_state(model)


@pytest.mark.parametrize("name", ["q_proj", "lora_A", "base", "model", "0"])
def test_an_adapter_may_have_the_name_of_a_module(name: str, tmp_path: Path) -> None:
    try:
        model = get_peft_model(base_model(), LORA, adapter_name=name)
    except (ValueError, KeyError):
        pytest.skip("PEFT refuses the name")
    checkpoint = trained(model, tmp_path)
    again = PeftModel.from_pretrained(base_model(), checkpoint)
    assert torch.equal(logits(again), logits(model))


def test_an_adapter_beside_one_with_the_name_of_a_module_is_refused() -> None:
    model = get_peft_model(base_model(), LORA)
    model.add_adapter("q_proj", LORA)
    model.set_adapter("default")
    with pytest.raises(CheckpointError, match=r"PEFT does not save with the adapter 'default'.*another name"):
        model_state(model)


def test_of_several_adapters_the_trained_one_is_saved(tmp_path: Path) -> None:
    model = get_peft_model(base_model(), LORA)
    model.add_adapter("second", LoraConfig(r=3, target_modules=["o_proj"], task_type="CAUSAL_LM"))
    model.set_adapter("second")
    checkpoint = trained(model, tmp_path)
    assert json.loads((checkpoint / "adapter_config.json").read_text())["r"] == 3
    assert torch.equal(logits(PeftModel.from_pretrained(base_model(), checkpoint)), logits(model))


def test_weights_that_are_trained_beside_the_adapter_are_refused() -> None:
    model = lora_model()
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(CheckpointError, match=r"trains 'base_model.*embed_tokens.weight' .*modules_to_save"):
        model_state(model)


@pytest.mark.parametrize("config", [LORA, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)])
def test_a_resized_vocabulary_is_saved_with_the_adapter(config: Any, tmp_path: Path) -> None:
    base_model().save_pretrained(tmp_path / "base")

    def resized() -> Qwen2ForCausalLM:
        model: Qwen2ForCausalLM = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        model.resize_token_embeddings(VOCABULARY + 4)
        return model

    torch.manual_seed(1)
    model = get_peft_model(resized(), config)
    checkpoint = trained(model, tmp_path / "out")
    torch.manual_seed(99)
    assert torch.equal(logits(PeftModel.from_pretrained(resized(), checkpoint)), logits(model))


def test_an_embedding_that_was_replaced_by_hand_is_saved_with_the_adapter(tmp_path: Path) -> None:
    base_model().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.set_input_embeddings(nn.Embedding(VOCABULARY + 4, 16))
    names = model_state(get_peft_model(model, LORA)).tensors
    assert "base_model.model.model.embed_tokens.weight" in names


def test_weights_that_are_offloaded_are_refused() -> None:
    with torch.device("meta"):
        model = base_model()
    with pytest.raises(CheckpointError, match=r"'model.embed_tokens.weight' are offloaded.*device_map"):
        dict(model_state(model).tensors)


def test_all_weights_of_a_quantized_model_are_refused() -> None:
    model = base_model()
    model.hf_quantizer = object()
    with pytest.raises(CheckpointError, match="is quantized and trains no adapter"):
        model_state(model)


class Pieces(FullyShardedDataParallel):
    """A model of the type that tells FSDP version 1 apart; FSDP itself needs several processes."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    __getattr__ = nn.Module.__getattr__
    named_parameters = nn.Module.named_parameters


def test_the_first_version_of_fsdp_is_seen_and_refused() -> None:
    model = Pieces()
    AcceleratorState(cpu=True)
    assert is_sharded(model)
    assert not is_sharded(base_model())
    event: Any = SimpleNamespace(model=model)
    with pytest.raises(ConfigError, match=r"fsdp: version 1 .* fsdp_version: 2"):
        ShardedSaving(SimpleNamespace(), event)  # type: ignore[arg-type]  # refused before the setup is read


def stopped_at_three(model: Any, directory: Path, **options: Any) -> str:
    """The resume checkpoint of a training of 6 steps that was stopped."""
    ours = callback("0,3", publish=False, resume_at_end=True)
    make_trainer(directory, [StopAt(3), ours], model=model, max_steps=6, **options).train()
    return str(directory / "resume" / "checkpoint-3")


def test_a_compiled_model_whose_weights_the_trainer_does_not_load_is_not_resumed(tmp_path: Path) -> None:
    saved = stopped_at_three(base_model(), tmp_path, remove_unused_columns=False)
    compiled = torch.compile(base_model(), backend="eager")
    ours = callback("0,3", publish=False)
    trainer = make_trainer(tmp_path, [ours], model=compiled, max_steps=6, remove_unused_columns=False)
    with pytest.raises(CheckpointError, match="is not the saved one, because the Trainer did not load it"):
        trainer.train(resume_from_checkpoint=saved)


def test_a_prompt_whose_encoder_is_not_in_the_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    def prompted(seed: int) -> Any:
        base = base_model()
        torch.manual_seed(seed)
        config = PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8)
        return get_peft_model(base, config)

    saved = stopped_at_three(prompted(1), tmp_path)
    trainer = make_trainer(tmp_path, [callback("0,3", publish=False)], model=prompted(1), max_steps=6)
    with pytest.raises(CheckpointError, match="prompt method that trains an encoder, cannot be resumed"):
        trainer.train(resume_from_checkpoint=saved)


class TwoDevices:
    """A stand-in for two GPUs: a copy arrives when the event of its own device is waited for, and not before."""

    def device(self, tensor: Tensor) -> torch.device | None:
        return torch.device("cuda", 0 if tensor.numel() % 2 else 1)

    def begin_copy(self, device: Any, targets: Any, sources: Any) -> Any:
        pairs = [(target, source.clone()) for target, source in zip(targets, sources, strict=True)]

        class Event:
            def synchronize(self) -> None:
                for target, source in pairs:
                    target.copy_(source)

        return Event()


def test_the_copies_from_every_device_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_asynchronous_device", TwoDevices().device)
    monkeypatch.setattr(snapshot, "_begin_copy", TwoDevices().begin_copy)
    monkeypatch.setattr(snapshot, "_is_small", lambda tensor: False)
    model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(4, 4, bias=False)])
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].weight.fill_(2.0)
    taken = SnapshotBuffers(model_state(model), max_in_flight=1).take(0)
    assert len(taken.copied) == 2
    with torch.no_grad():
        model[0].weight.zero_()
        model[1].weight.zero_()
    taken.wait()
    assert [float(tensor.mean()) for tensor in taken.tensors.values()] == [1.0, 2.0]


def test_the_offload_to_disk_of_a_frozen_base_does_not_keep_its_adapter_from_being_saved(tmp_path: Path) -> None:
    model = lora_model()
    model.get_base_model().model.layers[0].mlp.to("meta")
    state = model_state(model)
    state.writer()(tmp_path, SnapshotBuffers(state, max_in_flight=1).take(0).tensors)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 4
