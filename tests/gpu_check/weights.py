"""Each checkpoint of a real training is the model at its step, also after memory has run out."""

import gc
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import TrainerCallback

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.saving import overlap as overlap_module
from emtoolkit.saving.adapter_state import model_state
from emtoolkit.saving.overlapped_copy import OverlappedCopy
from tests.gpu_check.device import Device, Outcome
from tests.gpu_check.trainings import Kind, make_trainer, weights_in

_ON_EVERY_DEVICE: list[tuple[Kind, torch.dtype, dict[str, Any]]] = [
    ("lora", torch.bfloat16, {}),
    ("full", torch.bfloat16, {}),
    ("full", torch.float32, {}),
]
_ON_A_GPU: list[tuple[Kind, torch.dtype, dict[str, Any]]] = [
    ("full", torch.float32, {"optim": "adamw_torch_fused"}),
    ("lora", torch.float32, {"fp16": True}),
    ("lora", torch.bfloat16, {"gradient_checkpointing": True}),
    ("full", torch.bfloat16, {"torch_compile": True}),
]


class Truth(TrainerCallback):
    """Copies the weights synchronously, after our callback at every event."""

    changes_weights = False

    def __init__(self, device: Device) -> None:
        self._device = device
        self.weights: dict[int, dict[str, Tensor]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note(state, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note(state, kwargs["model"])

    def _note(self, state: Any, model: Any) -> None:
        self._device.synchronize()
        tensors = model_state(model).tensors
        self.weights[state.global_step] = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}


def check_checkpoints(device: Device) -> Iterator[Outcome]:
    """Trainings that save at every step, in each precision, with one and with two copies in flight."""
    cases = [(*case, *how) for case in _ON_EVERY_DEVICE for how in ((1, False), (2, False), (2, True))]
    for kind, dtype, options, in_flight, overlap in [*cases, *((*case, 2, True) for case in _ON_A_GPU)]:
        option = "".join(f", {key if value is True else value}" for key, value in options.items())
        beside = ", beside the next step" if overlap else ""
        name = f"{kind}, {str(dtype).removeprefix('torch.')}{option}, {in_flight} in flight{beside}"
        if not device.is_gpu and (kind, dtype, options) in _ON_A_GPU:
            yield Outcome.skipped(name, "no GPU")
            continue
        with patch.object(overlap_module, "SMALLEST", 0):
            yield _trained(device, name, kind, dtype, options, in_flight, overlap)
        gc.collect()
        if device.is_gpu:
            torch.cuda.empty_cache()


def _trained(
    device: Device, name: str, kind: Kind, dtype: torch.dtype, options: dict[str, Any], in_flight: int, overlap: bool
) -> Outcome:
    directory = device.home / name.replace(", ", "-").replace(" ", "-")
    truth = Truth(device)
    ours = ScheduledCheckpointCallback(
        "0,every:1", publish=False, max_in_flight=in_flight, overlap=overlap, resume_every="never"
    )
    steps = 6 if device.small else 12
    with patch.object(OverlappedCopy, "settle", autospec=True, side_effect=OverlappedCopy.settle) as settled:
        make_trainer(device, directory, [ours, truth], kind=kind, dtype=dtype, steps=steps, **options).train()
    copies = {id(call.args[0]): call.args[0] for call in settled.call_args_list}.values()
    beside = sum(copy.failure is None and not copy.moved for copy in copies)
    wrong, moved = 0, 0
    for step, weights in truth.weights.items():
        saved = weights_in(directory / f"checkpoint-{step}")
        # Tied to the embeddings, and therefore once in a file.
        wanted = weights.keys() - ({"lm_head.weight"} if kind == "full" else set())
        wrong += sum(not (n in saved and torch.equal(saved[n], weights[n])) for n in wanted)
        earlier = truth.weights.get(step - 1, weights)
        moved += any(not torch.equal(weights[n], earlier[n]) for n in wanted)
    # The learning rate may be zero in the first step.
    passed = wrong == 0 and moved >= len(truth.weights) - 2
    note = f"{len(truth.weights)} checkpoints, {wrong} wrong tensors, {moved} steps moved"
    if overlap:
        # Step 0 is the rehearsal, and after the last step nothing follows.
        passed, note = passed and beside == steps - 1, f"{note}, {beside} copied beside"
    return Outcome.of(name, passed, note)


def check_out_of_memory(device: Device) -> Iterator[Outcome]:
    """A training that runs out of memory at the beginning of step 6."""
    name = "out of memory: the last whole step is saved"
    if not device.is_gpu:
        yield Outcome.skipped(name, "no GPU")
        return

    class Hog(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                torch.empty(2**44, device=device.name)

    ours, truth = ScheduledCheckpointCallback("0,100", allow_unreachable=True, publish=False), Truth(device)
    directory = device.home / "out-of-memory"
    try:
        make_trainer(device, directory, [ours, truth, Hog()]).train()
    except torch.OutOfMemoryError:
        ours.save_after_failure()
    saved = weights_in(directory / "checkpoint-5")
    yield Outcome.of(name, all(torch.equal(saved[n], t) for n, t in truth.weights[5].items()))
