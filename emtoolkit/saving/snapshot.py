"""Copies of a model's state at one step, in buffers that are reused from save to save.

A save only copies memory, because the tensors are listed once and again only if one moved. Writing the live tensors
without a copy produced wrong files.
"""

import queue
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emtoolkit.saving.live_tensors import place
from emtoolkit.saving.model_state import ModelState, WriteFiles

# Up to this size in bytes a copy through the buffer protocol is faster, because no operator is dispatched (0.6 ms
# instead of 0.8 ms for the 112 tensors of a 9.6 MB LoRA); above it torch's threads are faster.
_LARGE = 512 * 1024


class _Live:
    """The live tensors of one listing; tied names share an index, and their memory is copied once."""

    def __init__(self, listing: Mapping[str, Tensor]) -> None:
        self.listing = listing
        self.names: dict[str, int] = {}
        self.tensors: list[Tensor] = []
        indices: dict[tuple[Any, ...], int] = {}
        for name, tensor in listing.items():
            key = place(tensor)
            if key not in indices:
                indices[key] = len(self.tensors)
                self.tensors.append(tensor.detach())
            self.names[name] = indices[key]


class _Buffers:
    """Memory for one copy of the live tensors."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._layouts: list[Any] = []
        self._live: _Live | None = None

    def fill(self, live: _Live) -> list[Any]:
        """Copy the live tensors; the events that say when each device has finished."""
        if live is not self._live:
            self._bind(live)
        for target, source in self._small:
            target[:] = source
        return [_begin_copy(device, *pairs) for device, pairs in self._large.items()]

    def _bind(self, live: _Live) -> None:
        """Prepare to copy `live`; memory is kept where the tensor at the same place has the same layout."""
        layouts = [(t.shape, t.stride(), t.dtype, _asynchronous_device(t) is not None) for t in live.tensors]
        kept = dict(enumerate(self.tensors)) if layouts == self._layouts else {}
        self.tensors = [
            kept[i] if i in kept else torch.empty_like(t, device="cpu", pin_memory=t.is_cuda)
            for i, t in enumerate(live.tensors)
        ]
        self._layouts, self._live = layouts, live
        self._small = []
        self._large: dict[torch.device | None, tuple[list[Tensor], list[Tensor]]] = {}
        for target, source in zip(self.tensors, live.tensors, strict=True):
            if _is_small(source):
                self._small.append((_memory(target), _memory(source)))
            else:
                targets, sources = self._large.setdefault(_asynchronous_device(source), ([], []))
                targets.append(target)
                sources.append(source)


def _asynchronous_device(tensor: Tensor) -> torch.device | None:
    """The device of `tensor` if copies from there arrive later, otherwise None."""
    return tensor.device if tensor.is_cuda else None


def _begin_copy(device: torch.device | None, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> Any:
    """Copy from one device; the event that says that the copies have arrived, or None if they have."""
    with torch.no_grad():
        torch._foreach_copy_(list(targets), list(sources), non_blocking=device is not None)
    # Only an event on the stream of the copies' own device waits for them, and there is one such stream a device.
    return None if device is None else torch.cuda.current_stream(device).record_event()


def _is_small(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.nbytes <= _LARGE


def _memory(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The tensors of one step in CPU memory; call `wait` before reading them."""

    step: int
    buffers: _Buffers
    names: Mapping[str, int]
    copied: Sequence[Any]
    write: WriteFiles

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The copies by name; tied names map to the same object."""
        return {name: self.buffers.tensors[i] for name, i in self.names.items()}

    @property
    def bytes(self) -> int:
        """The size of the tensors; tied tensors count once."""
        return sum(tensor.nbytes for tensor in self.buffers.tensors)

    def wait(self) -> None:
        """Wait until the asynchronous copies from every GPU have finished."""
        for event in self.copied:
            if event is not None:
                event.synchronize()


class SnapshotBuffers:
    """At most `max_in_flight` copies of a model's state; another copy waits until an older one is released."""

    def __init__(self, state: ModelState, max_in_flight: int) -> None:
        self._state = state
        self._live = _Live(state.tensors)
        self._free: queue.SimpleQueue[_Buffers] = queue.SimpleQueue()
        self._not_yet_allocated = max_in_flight
        self.waited_seconds = 0.0
        self.waits = 0

    def prepare(self) -> None:
        """Allocate the first copy now, so that the first save does not; others are allocated when needed."""
        self.release(self.take(step=0))

    def take(self, step: int) -> Snapshot:
        """Copy the live tensors of `step`; called by the training thread."""
        buffers = self._take_buffers()
        listing = self._state.tensors
        if listing is not self._live.listing:
            self._live = _Live(listing)
        return Snapshot(step, buffers, self._live.names, buffers.fill(self._live), self._state.writer())

    def release(self, snapshot: Snapshot) -> None:
        """Reuse the memory of `snapshot`; its tensors must not be read afterwards."""
        self._free.put(snapshot.buffers)

    def _take_buffers(self) -> _Buffers:
        try:
            return self._free.get_nowait()
        except queue.Empty:
            pass
        if self._not_yet_allocated > 0:
            self._not_yet_allocated -= 1
            return _Buffers()
        started = time.perf_counter()
        buffers = self._free.get()
        self.waits += 1
        self.waited_seconds += time.perf_counter() - started
        return buffers
