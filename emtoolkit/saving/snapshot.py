"""Copies of a model's state at one step, in buffers that are reused from save to save.

A save only copies memory, because the tensors are listed once and again only if one moved. Writing the live tensors
without a copy produced wrong files.
"""

import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from emtoolkit.saving.live_tensors import place
from emtoolkit.saving.model_state import ModelState, WriteFiles

# Up to this size in bytes a copy through the buffer protocol is faster, because no operator is dispatched (0.6 ms
# instead of 0.8 ms for the 112 tensors of a 9.6 MB LoRA); above it torch's threads are faster.
_LARGE = 512 * 1024

# torch copies 32,768 elements or more in several threads. A copy beside the training in pieces of fewer elements, each
# of up to 16 bytes, takes one processor only.
_PIECE = 32_000


# Copies and what is copied, in the same order.
_Pairs = tuple[list[Tensor], list[Tensor]]


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
        self.bytes = sum(tensor.nbytes for tensor in self.tensors)


class _Buffers:
    """Memory for one copy of the live tensors."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._sources: list[Tensor] = []
        self._layouts: list[Any] = []
        self._live: _Live | None = None
        self._pieces: Mapping[torch.device | None, _Pairs] | None = None

    def fill(self, live: _Live) -> dict[torch.device | None, Any]:
        """Copy the live tensors; the events that say when each device has finished."""
        self.bind(live)
        for target, source in self._small:
            target[:] = source
        return {device: _begin_copy(device, *pairs) for device, pairs in self._large.items()}

    def hand_over(self) -> dict[torch.device | None, Any]:
        """The events that say when each device has computed the tensors as they are now."""
        return {device: _record(device) for device in self._large if device is not None}

    def fill_beside(self, handed_over: Mapping[torch.device | None, Any]) -> dict[torch.device | None, Any]:
        """Do as `fill` with the tensors of `bind`, in another thread, on streams that wait for `handed_over`."""
        if self._pieces is None:
            self._pieces = self._cut()
        copied = {}
        for device, pairs in self._pieces.items():
            with _side_stream(device, handed_over.get(device)):
                copied[device] = _begin_copy(device, *pairs)
        return copied

    def _cut(self) -> Mapping[torch.device | None, _Pairs]:
        """The tensors by device; those in the memory of the CPU in pieces, if there are any."""
        here: _Pairs = ([], [])
        for target, source in zip(self.tensors, self._sources, strict=True):
            if _asynchronous_device(source) is None:
                for part, cut in zip(here, _in_pieces(target, source), strict=True):
                    part.extend(cut)
        on_gpus: dict[torch.device | None, _Pairs] = {
            device: pairs for device, pairs in self._large.items() if device is not None
        }
        # torch refuses to copy a list of no tensors.
        return {**on_gpus, None: here} if here[0] else on_gpus

    def bind(self, live: _Live) -> None:
        """Prepare to copy `live`; memory is kept where the tensor at the same place has the same layout."""
        if live is self._live:
            return
        layouts = [(t.shape, t.stride(), t.dtype, _asynchronous_device(t) is not None) for t in live.tensors]
        kept = dict(enumerate(self.tensors)) if layouts == self._layouts else {}
        self.tensors = [
            kept[i] if i in kept else torch.empty_like(t, device="cpu", pin_memory=t.is_cuda)
            for i, t in enumerate(live.tensors)
        ]
        self._sources, self._layouts, self._live, self._pieces = live.tensors, layouts, live, None
        self._small = []
        self._large: dict[torch.device | None, _Pairs] = {}
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
    return None if device is None else _record(device)


def _record(device: torch.device) -> Any:
    """An event behind everything that the current stream of `device` has been given."""
    return torch.cuda.current_stream(device).record_event()


@cache
def _stream_of_copies(device: torch.device) -> Any:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped


@contextmanager
def _side_stream(device: torch.device | None, after: Any) -> Iterator[None]:
    """Make a stream of the copies' own current on `device`, which waits for the event `after`; nothing on a CPU."""
    if device is None:
        yield
        return
    stream = _stream_of_copies(device)
    with torch.cuda.stream(stream):
        stream.wait_event(after)
        yield


def _hold_stream(device: torch.device, event: Any) -> None:
    """Let the current stream of `device` wait for `event`, and not this thread."""
    torch.cuda.current_stream(device).wait_event(event)


def _in_pieces(target: Tensor, source: Tensor) -> Iterator[Sequence[Tensor]]:
    """Views of both tensors, cut at the same places."""
    if not source.is_contiguous():
        yield from ([target], [source])
        return
    wide = source.nbytes % 16 == 0 and source.storage_offset() * source.itemsize % 16 == 0
    for tensor in (target, source):
        flat = tensor.view(-1)
        flat = flat.view(torch.complex128) if wide else flat
        yield torch.split(flat, _PIECE)


def _is_small(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.nbytes <= _LARGE


def _memory(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The tensors of one step in CPU memory; call `wait` before reading them."""

    step: int
    buffers: _Buffers
    live: _Live
    copied: Mapping[torch.device | None, Any]
    write: WriteFiles

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The copies by name; tied names map to the same object."""
        return {name: self.buffers.tensors[i] for name, i in self.live.names.items()}

    @property
    def bytes(self) -> int:
        """The size of the tensors; tied tensors count once."""
        return self.live.bytes

    @property
    def is_here(self) -> bool:
        """Whether no copy of the tensors is still on its way from a GPU."""
        return all(event is None for event in self.copied.values())

    def wait(self) -> "Snapshot":
        """Wait until the asynchronous copies from every GPU have finished; this snapshot."""
        for event in self.copied.values():
            if event is not None:
                event.synchronize()
        return self

    def hold_streams(self) -> None:
        """Let the current stream of every GPU wait for the copies from there before it computes anything else."""
        for device, event in self.copied.items():
            if device is not None:
                _hold_stream(device, event)


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
        return self._filled(step, self._take_buffers())

    def begin(self, step: int) -> Snapshot:
        """The memory for a copy of `step`, which `fill_beside` fills; called by the training thread."""
        buffers = self._take_buffers()
        buffers.bind(self._live)
        return Snapshot(step, buffers, self._live, buffers.hand_over(), self._state.writer())

    def fill_beside(self, begun: Snapshot) -> Snapshot | None:
        """Copy the tensors into the memory that `begin` returned, in another thread; None if they moved before."""
        if not self._state.still_lists(begun.live.listing):
            return None
        return replace(begun, copied=begun.buffers.fill_beside(begun.copied))

    def fill_again(self, begun: Snapshot) -> Snapshot:
        """Copy the live tensors into the memory that `begin` returned; called by the training thread."""
        return self._filled(begun.step, begun.buffers)

    def release(self, snapshot: Snapshot) -> None:
        """Reuse the memory of `snapshot`; its tensors must not be read afterwards."""
        self._free.put(snapshot.buffers)

    def _filled(self, step: int, buffers: _Buffers) -> Snapshot:
        listing = self._state.tensors
        if listing is not self._live.listing:
            self._live = _Live(listing)
        return Snapshot(step, buffers, self._live, buffers.fill(self._live), self._state.writer())

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
