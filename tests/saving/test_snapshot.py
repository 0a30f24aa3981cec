"""Copies of the weights: independent of the model, in reused buffers, at most as many as allowed."""

import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from emtoolkit.saving.adapter_state import model_state
from emtoolkit.saving.model_state import WriteFiles
from emtoolkit.saving.snapshot import SnapshotBuffers
from tests.processes import HANG_SECONDS
from tests.saving.trainings import base_model, lora_model


class TwoTensors:
    """The state of a model with tied weights: two names, one storage."""

    def __init__(self) -> None:
        self.weight = torch.arange(4.0)
        self.tensors: Mapping[str, Tensor] = {"embed": self.weight, "head": self.weight.view(4), "bias": torch.ones(2)}

    def writer(self) -> WriteFiles:
        return lambda directory, tensors: None


def test_a_snapshot_does_not_follow_the_weights() -> None:
    state = TwoTensors()
    snapshot = SnapshotBuffers(state, max_in_flight=2).take(3)
    state.weight += 100
    assert {name: tensor.tolist() for name, tensor in snapshot.tensors.items()} == {
        "embed": [0.0, 1.0, 2.0, 3.0],
        "head": [0.0, 1.0, 2.0, 3.0],
        "bias": [1.0, 1.0],
    }


def test_every_kind_of_tensor_is_copied_as_it_is() -> None:
    class Kinds(TwoTensors):
        tensors: Mapping[str, Tensor] = {
            "scalar": torch.tensor(3.5),
            "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
            "integers": torch.arange(5),
            "empty": torch.empty(0, 3),
            "transposed": torch.arange(6.0).view(2, 3).t(),
            "large": torch.arange(200_000, dtype=torch.float32),
        }

        def __init__(self) -> None:
            pass

    copies = SnapshotBuffers(Kinds(), max_in_flight=1).take(0).tensors
    for name, tensor in Kinds.tensors.items():
        assert copies[name].dtype == tensor.dtype, name
        assert torch.equal(copies[name], tensor), name
        assert copies[name].numel() == 0 or copies[name].data_ptr() != tensor.data_ptr(), name


def test_tied_weights_are_copied_once() -> None:
    snapshot = SnapshotBuffers(TwoTensors(), max_in_flight=1).take(0)
    assert snapshot.tensors["embed"].data_ptr() == snapshot.tensors["head"].data_ptr()
    assert snapshot.bytes == 4 * 4 + 2 * 4


def test_buffers_are_kept_between_saves() -> None:
    buffers = SnapshotBuffers(TwoTensors(), max_in_flight=2)
    first = buffers.take(1)
    place = first.tensors["bias"].data_ptr()
    buffers.release(first)
    assert buffers.take(2).tensors["bias"].data_ptr() == place


def test_a_third_snapshot_waits_for_an_earlier_one_and_the_wait_is_counted() -> None:
    buffers = SnapshotBuffers(TwoTensors(), max_in_flight=2)
    first, _ = buffers.take(1), buffers.take(2)
    taken: list[int] = []
    third = threading.Thread(target=lambda: taken.append(buffers.take(3).step))
    third.start()
    assert buffers.waits == 0
    assert taken == []
    buffers.release(first)
    third.join(HANG_SECONDS)
    assert taken == [3]
    assert buffers.waits == 1
    assert buffers.waited_seconds >= 0


def test_the_state_of_an_adapter_aliases_the_live_parameters() -> None:
    model = lora_model()
    state = model_state(model)
    parameter = next(p for name, p in model.named_parameters() if "lora_B" in name)
    with torch.no_grad():
        parameter += 1
    assert sum(float(tensor.sum()) for name, tensor in state.tensors.items() if "lora_B" in name) > 0


def test_a_full_model_is_saved_whole_with_its_embedding_once(tmp_path: Path) -> None:
    model = base_model()
    state = model_state(model)
    state.writer()(tmp_path, SnapshotBuffers(state, 1).take(0).tensors)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    size = sum(p.nbytes for p in model.parameters())
    assert size < (tmp_path / "model.safetensors").stat().st_size < size + 4000
