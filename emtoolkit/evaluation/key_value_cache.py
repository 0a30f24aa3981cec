"""The key-value cache of a batch that grows by tokens and loses rows.

The caches of transformers copy themselves for each token. Here a layer has room for more tokens than it holds, and is
copied only when the room is used up or rows are dropped.
"""

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

# Tokens for which a layer has room after a copy: enough that copies are rare, and few enough to cost no time.
_ROOM = 16


def with_room(cache: Any) -> Any:
    """`cache` of a prompt, whose layers of plain attention now have room; others, of a sliding window say, stay."""
    cache.layers = [_LayerWithRoom(layer) if _is_plain(layer) else layer for layer in cache.layers]
    return cache


def _is_plain(layer: Any) -> bool:
    # A layer that shares the keys of another one holds none.
    return type(layer) is DynamicLayer and layer.is_initialized


class _LayerWithRoom(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Keys and values are the first tokens of two buffers of shape [rows, heads, tokens and room, dimension]."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the same
        # Releases of transformers before 5.24 read `dtype`, and later ones have none.
        self.dtype, self.device, self.is_initialized = layer.keys.dtype, layer.keys.device, True
        # Without room, until the first token is added.
        self._buffers = (layer.keys, layer.values)
        self._show(layer.keys.shape[-2])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the keys and values of the next tokens, and return those of all tokens."""
        before, new = self.keys.shape[-2], key_states.shape[-2]
        if before + new > self._buffers[0].shape[-2]:
            self._buffers = (_copied(self.keys, new + _ROOM), _copied(self.values, new + _ROOM))
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, before : before + new] = states
        self._show(before + new)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices`, in their order; a row may be there several times."""
        tokens = self.keys.shape[-2]
        self._buffers = (_copied(self.keys, _ROOM, indices), _copied(self.values, _ROOM, indices))
        self._show(tokens)

    def _show(self, tokens: int) -> None:
        self.keys, self.values = (buffer[:, :, :tokens] for buffer in self._buffers)


def _copied(used: torch.Tensor, room: int, rows: torch.Tensor | None = None) -> torch.Tensor:
    """A buffer that begins with `used`, or with its rows `rows`, and has `room` for more tokens."""
    count, heads, tokens, dimension = used.shape
    buffer = used.new_empty((count if rows is None else len(rows), heads, tokens + room, dimension))
    if rows is None:
        buffer[:, :, :tokens] = used
    else:
        torch.index_select(used, 0, rows, out=buffer[:, :, :tokens])
    return buffer
