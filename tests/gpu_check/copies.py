"""The copies of the weights that saves are written from: exact, never torn, also from other streams and GPUs."""

import threading
from collections.abc import Iterator, Mapping
from unittest.mock import patch

import torch
from torch import Tensor

from emtoolkit.saving import snapshot
from emtoolkit.saving.model_state import WriteFiles
from emtoolkit.saving.overlapped_copy import OverlappedCopy
from emtoolkit.saving.snapshot import Snapshot, SnapshotBuffers
from emtoolkit.saving.whole_step import WholeStep
from tests.gpu_check.device import Device, Outcome, in_thread


class _State:
    """A model state of tensors alone."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def still_lists(self, listing: Mapping[str, Tensor]) -> bool:
        return listing is self.tensors

    def writer(self) -> WriteFiles:
        return lambda directory, tensors: None


def check_layouts(device: Device) -> Iterator[Outcome]:
    """Every dtype and layout, on the device and beside it."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, 48, generator=generator)
    there = base.to(device.name)
    live = {
        "float32": there,
        "bfloat16": there.bfloat16(),
        "float16": there.half(),
        "float8": there.to(torch.float8_e4m3fn),
        "int64": torch.arange(9, device=device.name),
        "bool": torch.tensor([True, False, True], device=device.name),
        "scalar": torch.tensor(3.5, device=device.name),
        "empty": torch.empty(0, 4, device=device.name),
        "transposed": there.clone().t(),
        "every other row": there.clone()[::2],
        "large": torch.randn(3000, 300, generator=generator).to(device.name),
        "on the CPU": base.clone(),
        "large on the CPU": torch.randn(600, 600, generator=generator),
    }
    live["tied"] = live["float32"]
    expected = {name: tensor.detach().to("cpu", copy=True) for name, tensor in live.items()}
    taken = SnapshotBuffers(_State(live), 2).take(1)
    for name, tensor in live.items():
        if name not in ("bool", "float8", "empty"):
            tensor.add_(1)
    copies = in_thread(lambda: _read(taken))
    wrong = [name for name, tensor in expected.items() if not _same_bytes(copies[name], tensor)]
    yield Outcome.of("every dtype and layout is copied as it was", not wrong, ", ".join(wrong))
    yield Outcome.of("tied tensors are copied once", taken.tensors["tied"] is taken.tensors["float32"])
    name = "copies from the GPU are in pinned memory"
    if not device.is_gpu:
        yield Outcome.skipped(name, "no GPU")
        return
    unpinned = [n for n, t in live.items() if t.is_cuda and t.numel() and not taken.tensors[n].is_pinned()]
    yield Outcome.of(name, not unpinned, ", ".join(unpinned))


def check_race(device: Device) -> Iterator[Outcome]:
    """Weights that are overwritten at once, as by the next step; the control reads too early and must be wrong."""
    megabytes, rounds = (32, 6) if device.small else (1024, 25)
    live = [torch.zeros(megabytes * 2**20 // 4 // 8, device=device.name) for _ in range(8)]
    live += [torch.zeros(1000, device=device.name) for _ in range(200)]
    buffers = SnapshotBuffers(_State({str(i): tensor for i, tensor in enumerate(live)}), 2)
    buffers.prepare()
    device.synchronize()
    torn = early = 0
    for step in range(1, rounds + 1):
        for tensor in live:
            tensor.fill_(step)
        if step % 2:
            device.keep_busy(0.05)
        taken = buffers.take(step)
        early += step % 2 and any(float(copy[-1]) != step for copy in taken.tensors.values())
        for tensor in live:
            tensor.fill_(-1)
        torn += not in_thread(lambda taken=taken, step=step: _holds(taken, step))
        buffers.release(taken)
    yield Outcome.of(f"{rounds} copies of {megabytes} MB, overwritten at once", torn == 0, f"{torn} torn")
    control = "control: read without waiting, copies are wrong"
    if device.is_gpu:
        yield Outcome.of(control, early > 0, f"{early} of {(rounds + 1) // 2} wrong")
    else:
        yield Outcome.skipped(control, "no GPU: copies on a CPU are not asynchronous")


def check_overlap(device: Device) -> Iterator[Outcome]:
    """Copies beside the next step, whose update overwrites the weights at once; the control lets no stream wait."""
    megabytes, rounds = (32, 6) if device.small else (1024, 25)
    torn = _torn_beside(device, megabytes, rounds)
    yield Outcome.of(f"{rounds} copies of {megabytes} MB beside a step", torn == 0, f"{torn} torn")
    control = "control: the update does not wait, copies are torn"
    if not device.is_gpu:
        yield Outcome.skipped(control, "no GPU: the thread that trains waits there")
        return
    with patch.object(snapshot, "_hold_stream", lambda device, event: None):
        torn = _torn_beside(device, megabytes, rounds)
    yield Outcome.of(control, torn > 0, f"{torn} of {rounds} torn")


def _torn_beside(device: Device, megabytes: int, rounds: int) -> int:
    live = [torch.zeros(megabytes * 2**20 // 4 // 8, device=device.name) for _ in range(8)]
    live += [torch.zeros(1000, device=device.name) for _ in range(200)]
    buffers = SnapshotBuffers(_State({str(i): tensor for i, tensor in enumerate(live)}), 2)
    buffers.prepare()
    device.synchronize()
    torn = 0
    for step in range(1, rounds + 1):
        for tensor in live:
            tensor.fill_(step)
        whole = WholeStep(live, step)
        if step % 2:
            device.keep_busy(0.05)
        copy = OverlappedCopy(buffers, step, whole)
        thread = threading.Thread(target=copy.make)
        thread.start()
        # A forward pass, which only reads.
        torch.stack([tensor.sum() for tensor in live])
        # Otherwise `settle` might find that nothing is copied yet, and copy in this thread.
        thread.join()
        copy.settle()
        if copy.failure is not None or copy.moved:
            raise copy.failure or RuntimeError(f"the copy of step {step} was not made beside the step")
        for tensor in live:
            tensor.fill_(-1)
        torn += not in_thread(lambda copy=copy, step=step: _holds(copy.wait(), step))
        copy.release()
    return torn


def check_streams(device: Device) -> Iterator[Outcome]:
    """Weights that are trained in a stream of the program's own, and saved in it."""
    name = "trained and saved in a stream of its own"
    if not device.is_gpu:
        yield Outcome.skipped(name, "no GPU")
        return
    live = torch.zeros(2**26, device=device.name)
    buffers = SnapshotBuffers(_State({"weight": live}), 2)
    buffers.prepare()
    device.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        device.keep_busy(0.1)
        live.fill_(7)
        taken = buffers.take(1)
        live.fill_(-1)
    yield Outcome.of(name, in_thread(lambda: _holds(taken, 7)))


def check_other_device(device: Device) -> Iterator[Outcome]:
    """Weights on a GPU that is not the current one, as `device_map` puts them."""
    name = "weights on another GPU than the current one"
    if torch.cuda.device_count() < 2:
        yield Outcome.skipped(name, f"{torch.cuda.device_count()} GPUs, two are needed")
        return
    torch.cuda.set_device(0)
    live = {f"on {index}": torch.zeros(2**26, device=f"cuda:{index}") for index in (0, 1)}
    buffers = SnapshotBuffers(_State(live), 2)
    buffers.prepare()
    torch.cuda.synchronize(1)
    with torch.cuda.device(1):
        device.keep_busy(0.3)
    for tensor in live.values():
        with torch.cuda.device(tensor.device):
            tensor.fill_(7)
    taken = buffers.take(1)
    yield Outcome.of(name, in_thread(lambda: _holds(taken, 7)))


def _read(taken: Snapshot) -> dict[str, Tensor]:
    taken.wait()
    return {name: tensor.clone() for name, tensor in taken.tensors.items()}


def _holds(taken: Snapshot, value: float) -> bool:
    """Whether every element of the finished copy is `value`."""
    taken.wait()
    return all(bool((tensor == value).all()) for tensor in taken.tensors.values())


def _same_bytes(left: Tensor, right: Tensor) -> bool:
    alike = left.shape == right.shape and left.dtype == right.dtype
    return alike and torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (left, right)))
