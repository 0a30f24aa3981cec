"""A checkpoint is the model of its step also after something gave the model's weights other memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from transformers import TrainerCallback

from emtoolkit.saving.adapter_state import model_state
from emtoolkit.saving.snapshot import SnapshotBuffers
from tests.saving.callbacks import callback
from tests.saving.trainings import base_model, lora_model, make_trainer


def trained(model: Any) -> list[Any]:
    return [p for p in model.parameters() if p.requires_grad]


def assign_data(model: Any) -> None:
    for p in trained(model):
        p.data = p.data * 0.5


def assign_vector(model: Any) -> None:
    vector_to_parameters(parameters_to_vector(trained(model)) * 0.5, trained(model))


def assign_in_load(model: Any) -> None:
    model.load_state_dict({name: tensor * 0.5 for name, tensor in model.state_dict().items()}, assign=True)


def new_parameters(model: Any) -> None:
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p is not None and p.requires_grad:
                setattr(module, name, nn.Parameter(p.detach() * 0.5))


def new_modules(model: Any) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child.weight.requires_grad:
                linear = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
                setattr(module, name, linear)


def other_type(model: Any) -> None:
    model.to(torch.bfloat16)


def transposed_in_place(model: Any) -> None:
    for p in trained(model):
        if p.dim() == 2 and p.shape[0] == p.shape[1]:
            p.data = p.data.t()


def nothing(model: Any) -> None:
    pass


CHANGES = [assign_data, assign_vector, assign_in_load, new_parameters, new_modules, other_type, nothing]


class Between(TrainerCallback):
    """Changes the model after step 2, and records the live weights of each step."""

    def __init__(self, change: Callable[[Any], None], weights: Callable[[Any], dict[str, torch.Tensor]]) -> None:
        self.change = change
        self.weights = weights
        self.live: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.record(state, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.change(kwargs["model"])
        self.record(state, kwargs["model"])

    def record(self, state: Any, model: Any) -> None:
        self.live[state.global_step] = {name: tensor.clone() for name, tensor in self.weights(model).items()}


def assert_same(saved: dict[str, torch.Tensor], live: dict[str, torch.Tensor]) -> None:
    assert sorted(saved) == sorted(live)
    for name, tensor in live.items():
        assert saved[name].dtype == tensor.dtype, name
        assert torch.equal(saved[name], tensor), name


@pytest.mark.parametrize("change", CHANGES)
def test_each_checkpoint_is_the_adapter_of_its_step(change: Callable[[Any], None], tmp_path: Path) -> None:
    live = Between(change, lambda model: get_peft_model_state_dict(model, save_embedding_layers=False))
    make_trainer(tmp_path, [live, callback("0-4:1")], max_steps=4, optim="sgd", learning_rate=0.1).train()
    for step in range(5):
        assert_same(load_file(tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors"), live.live[step])


@pytest.mark.parametrize("change", [*CHANGES, transposed_in_place])
def test_each_checkpoint_is_the_full_model_of_its_step(change: Callable[[Any], None], tmp_path: Path) -> None:
    live = Between(change, lambda model: model.state_dict())
    trainer = make_trainer(
        tmp_path, [live, callback("0-3:1")], model=base_model(), max_steps=3, optim="sgd", learning_rate=0.1
    )
    trainer.train()
    for step in range(4):
        saved = load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")
        expected = {name: live.live[step][name] for name in saved}
        assert_same(saved, expected)
        assert set(live.live[step]) - set(saved) <= {"lm_head.weight"}


def test_a_head_that_is_tied_no_more_is_saved_from_then_on(tmp_path: Path) -> None:
    model = base_model()
    buffers = SnapshotBuffers(model_state(model), max_in_flight=1)
    first = buffers.take(0)
    assert first.tensors["lm_head.weight"] is first.tensors["model.embed_tokens.weight"]
    buffers.release(first)
    model.lm_head.weight = nn.Parameter(torch.zeros_like(model.lm_head.weight))
    second = buffers.take(1).tensors
    assert not second["lm_head.weight"].any()
    assert second["model.embed_tokens.weight"].any()


def test_weights_swapped_in_for_one_step_are_that_step_and_no_other() -> None:
    model = lora_model()
    buffers = SnapshotBuffers(model_state(model), max_in_flight=1)
    own = [p.data for p in trained(model)]
    for step, weights in enumerate([own, [torch.full_like(w, 7.0) for w in own], own]):
        for p, weight in zip(trained(model), weights, strict=True):
            p.data = weight
        snapshot = buffers.take(step)
        assert_same(dict(snapshot.tensors), get_peft_model_state_dict(model, save_embedding_layers=False))
        buffers.release(snapshot)


def test_buffers_are_kept_when_the_weights_move() -> None:
    model = lora_model()
    buffers = SnapshotBuffers(model_state(model), max_in_flight=1)
    first = buffers.take(0)
    places = {name: tensor.data_ptr() for name, tensor in first.tensors.items()}
    buffers.release(first)
    assign_data(model)
    assert {name: tensor.data_ptr() for name, tensor in buffers.take(1).tensors.items()} == places
