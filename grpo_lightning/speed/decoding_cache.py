"""A cache for decoding: room reserved in blocks instead of concatenation at every token; cheap forks and drops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

BLOCK = 256
"""Number of tokens that room is reserved for at a time: memory against copies. Results do not depend on it."""


class RoomyLayer(DynamicLayer):
    """Keys and values in buffers with room for tokens to come; ``keys`` and ``values`` are views of them.

    Room is reserved block by block, for the rows that are left by then: the memory follows the completions' lengths.

    Args:
        parts: layers of different widths, filled by prefill passes or by decoding; their last tokens become aligned.
        forks: per part, the rows of it that decoding rows start from, in order.
        room: upper bound of the tokens that will be fed.
    """

    def __init__(self, parts: Sequence[DynamicLayer], forks: Sequence[Tensor], room: int) -> None:
        super().__init__()
        assert parts[0].keys is not None
        assert parts[0].values is not None
        self.lazy_initialization(parts[0].keys, parts[0].values)
        self.length = max(part.get_seq_length() for part in parts)
        columns = self.length + min(room, BLOCK)
        self._buffers = [
            _forked([getattr(part, name) for part in parts], forks, columns) for name in ("keys", "values")
        ]
        self._view(len(self._buffers[0]))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, self.length = self.length, self.length + key_states.shape[-2]
        if self.length > self._buffers[0].shape[-2]:
            self._grow(len(key_states), start)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: len(states), :, start : self.length] = states
        return self._view(len(key_states))

    def move(self, to: Tensor, source: Tensor, rows: int) -> None:
        """Copy some rows over others, then keep the first ``rows``."""
        for buffer in self._buffers:
            filled = buffer[:, :, : self.length]
            filled[to] = filled[source]
        self._view(rows)

    def _grow(self, rows: int, filled: int) -> None:
        for index, buffer in enumerate(self._buffers):
            _, heads, _, size = buffer.shape
            self._buffers[index] = buffer.new_empty(rows, heads, self.length + BLOCK, size)
            self._buffers[index][:, :, :filled] = buffer[:rows, :, :filled]

    def _view(self, rows: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[:rows, :, : self.length] for buffer in self._buffers)
        return self.keys, self.values


def _forked(parts: Sequence[Tensor], forks: Sequence[Tensor], columns: int) -> Tensor:
    """One buffer from several parts, their last columns aligned. What is left of a part is masked, but read."""
    width = max(part.shape[-2] for part in parts)
    _, heads, _, size = parts[0].shape
    # Under autocast attention reads them in its type, though some models turn keys in float32.
    device_type, dtype = parts[0].device.type, parts[0].dtype
    if torch.is_autocast_enabled(device_type) and dtype == torch.float32:
        dtype = torch.get_autocast_dtype(device_type)
    buffer = parts[0].new_empty(sum(map(len, forks)), heads, columns, size, dtype=dtype)
    for part, rows, fork in zip(parts, buffer.split([len(fork) for fork in forks]), forks, strict=True):
        start = width - part.shape[-2]
        rows[:, :, :start] = 0
        rows[:, :, start:width] = part[fork]
    return buffer


def decoding_cache(parts: Sequence[Cache], forks: Sequence[Tensor], room: int) -> Cache:
    """One cache for all decoding rows; with several parts, see
    :func:`grpo_lightning.speed.caches.has_plain_cache`.

    Args:
        parts: the caches of prefill passes, and of rows that decode already. They are used up.
        forks: per cache, the rows of it that decoding rows start from, in order.
        room: tokens that every row may be fed.
    """
    cache = parts[0]
    for index in range(len(cache.layers)):
        layers: list[Any] = [part.layers[index] for part in parts]
        if type(layers[0]) in (DynamicLayer, RoomyLayer):
            cache.layers[index] = RoomyLayer(layers, forks, room)
        elif len(layers) == 1:
            layers[0].reorder_cache(forks[0])
        else:
            for states in ("conv_states", "recurrent_states"):
                for number, state in getattr(layers[0], states).items():
                    if state is not None:
                        forked = [
                            getattr(layer, states)[number][fork] for layer, fork in zip(layers, forks, strict=True)
                        ]
                        getattr(layers[0], states)[number] = torch.cat(forked)
    return cache


def drop_rows(cache: Cache, to: Tensor, source: Tensor, index_R: Tensor) -> None:
    """Continue with the rows ``index_R``: the first ones, but for ``to``, whose places the rows ``source`` take."""
    layer: Any
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            layer.move(to, source, len(index_R))
        else:
            layer.reorder_cache(index_R)
