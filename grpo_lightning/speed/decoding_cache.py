"""A cache for decoding: room reserved in blocks instead of concatenation at every token; cheap forks and drops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from grpo_lightning.speed.packed import padded_rows

BLOCK = 256
"""Number of tokens that room is reserved for at a time: memory against copies. Results do not depend on it."""
ALIGNED = 8
"""Padded caches have a multiple of these columns: kernels copy a mask whose rows begin anywhere."""


class RoomyLayer(DynamicLayer):
    """Keys and values in buffers with room for tokens to come; ``keys`` and ``values`` are views of them.

    Room is reserved block by block, for the rows that are left by then: the memory follows the completions' lengths.

    Args:
        parts: layers of different widths, filled by prefill passes or by decoding; their last tokens become aligned.
        forks: per part, the rows of it that decoding rows start from, in order.
        room: upper bound of the tokens that will be fed.
        padded: the buffers have :func:`padded_rows`, and zeros where nothing has been written: steps of fixed shapes
            read all of it, under a mask.
        dtype: what keys and values are kept in; ``None``: the type in which attention reads them.
    """

    def __init__(
        self,
        parts: Sequence[DynamicLayer],
        forks: Sequence[Tensor],
        room: int,
        padded: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.padded, self.kept_in = padded, dtype
        assert parts[0].keys is not None
        assert parts[0].values is not None
        self.lazy_initialization(parts[0].keys, parts[0].values)
        self.length = max(part.get_seq_length() for part in parts)
        rows = sum(map(len, forks))
        self._buffers = []
        for name in ("keys", "values"):
            buffer = self._room(getattr(parts[0], name), rows, self.length + min(room, BLOCK))
            _fork([getattr(part, name) for part in parts], forks, buffer)
            self._buffers.append(buffer)
        self._view(rows)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, self.length = self.length, self.length + key_states.shape[-2]
        if self.length > self.columns:
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

    @property
    def columns(self) -> int:
        """Tokens per row that there is room for."""
        return min(buffer.shape[-2] for buffer in self._buffers)

    def at(self, column_1: Tensor, rows: int) -> FixedAttention:
        """All columns of the first rows, for a step that writes to ``column_1``."""
        keys, values = (buffer[:rows] for buffer in self._buffers)
        return FixedAttention(keys, values, column_1)

    def reserve(self, length: int, rows: int) -> None:
        """Make room for ``length`` tokens in each of the first ``rows``."""
        if length > self.columns:
            self.length = length
            self._grow(rows, length - 1)
            self._view(rows)

    def settle(self, length: int, rows: int) -> None:
        """Take note of the tokens that :meth:`at` has written."""
        self.length = length
        self._view(rows)

    def _grow(self, rows: int, filled: int) -> None:
        self.keys = self.values = None  # views of what is replaced
        for index, buffer in enumerate(self._buffers):
            if self.length > buffer.shape[-2]:  # not if values are tried again, after there was no room for them
                self._buffers[index] = self._room(buffer, rows, self.length + BLOCK)
                self._buffers[index][:rows, :, :filled] = buffer[:rows, :, :filled]

    def _room(self, like: Tensor, rows: int, columns: int) -> Tensor:
        _, heads, _, size = like.shape
        device_type, dtype = like.device.type, self.kept_in or like.dtype
        if self.kept_in is None and dtype == torch.float32 and torch.is_autocast_enabled(device_type):
            # Attention reads them in autocast's type, though some models turn keys in float32.
            dtype = torch.get_autocast_dtype(device_type)
        if self.padded:
            columns = -(-columns // ALIGNED) * ALIGNED
            return like.new_zeros(padded_rows(rows), heads, columns, size, dtype=dtype)
        return like.new_empty(rows, heads, columns, size, dtype=dtype)

    def _view(self, rows: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[:rows, :, : self.length] for buffer in self._buffers)
        return self.keys, self.values


class FixedAttention(NamedTuple):
    """Keys and values at their addresses, whole; a token goes where a tensor says, so that no shape depends on it."""

    keys: Tensor
    values: Tensor
    column_1: Tensor

    def update(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Write one token per row, and return what the layer holds, with room that is not filled yet."""
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            buffer.index_copy_(2, self.column_1, states.to(buffer.dtype))
        return self.keys, self.values


class RoomyStates(LinearAttentionLayer):
    """States of a fixed size per row, such as a convolution's last tokens, in buffers whose first rows decode.

    Args:
        parts: layers of prefill passes or of decoding rows.
        forks: per part, the rows of it that decoding rows start from, in order.
        padded: the buffers have :func:`padded_rows`.
    """

    def __init__(self, parts: Sequence[LinearAttentionLayer], forks: Sequence[Tensor], padded: bool) -> None:
        super().__init__()
        vars(self).update(vars(parts[0]))
        rows = sum(map(len, forks))
        held = padded_rows(rows) if padded else rows
        self._buffers: dict[str, dict[int, Tensor]] = {}
        for name in ("conv_states", "recurrent_states"):
            self._buffers[name] = {}
            for number, state in getattr(parts[0], name).items():
                if state is not None:
                    buffer = state.new_zeros(held, *state.shape[1:])
                    states = [getattr(part, name)[number][fork] for part, fork in zip(parts, forks, strict=True)]
                    torch.cat(states, out=buffer[:rows])
                    self._buffers[name][number] = buffer
        self._view(rows)

    def buffers(self) -> list[Tensor]:
        """All states, at their addresses."""
        return [buffer for buffers in self._buffers.values() for buffer in buffers.values()]

    def at(self, column_1: Tensor, rows: int) -> FixedStates:
        """The first rows, for a step of a fixed shape."""
        return FixedStates({number: buffer[:rows] for number, buffer in self._buffers["conv_states"].items()})

    def move(self, to: Tensor, source: Tensor, rows: int) -> None:
        """Copy some rows over others, then keep the first ``rows``."""
        for buffer in self.buffers():
            buffer[to] = buffer[source]
        self._view(rows)

    def _view(self, rows: int) -> None:
        for name, buffers in self._buffers.items():
            setattr(self, name, getattr(self, name) | {number: buffer[:rows] for number, buffer in buffers.items()})


class FixedStates(NamedTuple):
    """A convolution's states at their addresses."""

    conv_states: dict[int, Tensor]


def _fork(parts: Sequence[Tensor], forks: Sequence[Tensor], buffer: Tensor) -> None:
    """Fill the first rows of a buffer from several parts, their last columns aligned.

    What is left of a part is masked, but read.
    """
    width = max(part.shape[-2] for part in parts)
    counts = [len(fork) for fork in forks]
    for part, rows, fork in zip(parts, buffer[: sum(counts)].split(counts), forks, strict=True):
        start = width - part.shape[-2]
        rows[:, :, :start] = 0
        rows[:, :, start:width] = part[fork]


def decoding_cache(
    parts: Sequence[Cache],
    forks: Sequence[Tensor],
    room: int,
    padded: bool = False,
    dtype: torch.dtype | None = None,
) -> Cache:
    """One cache for all decoding rows; with several parts, see
    :func:`grpo_lightning.speed.caches.has_plain_cache`.

    Args:
        parts: the caches of prefill passes, and of rows that decode already. They are used up.
        forks: per cache, the rows of it that decoding rows start from, in order.
        room: tokens that every row may be fed.
        padded: room for steps of fixed shapes; see :class:`RoomyLayer`.
        dtype: type of keys and values; see :class:`RoomyLayer`.
    """
    cache = parts[0]
    for index in range(len(cache.layers)):
        layers: list[Any] = [part.layers[index] for part in parts]
        if type(layers[0]) in (DynamicLayer, RoomyLayer):
            cache.layers[index] = RoomyLayer(layers, forks, room, padded, dtype)
        elif type(layers[0]) in (LinearAttentionLayer, RoomyStates):
            cache.layers[index] = RoomyStates(layers, forks, padded)
        else:
            layers[0].reorder_cache(forks[0])
    return cache


def drop_rows(cache: Cache, to: Tensor, source: Tensor, index_R: Tensor) -> None:
    """Continue with the rows ``index_R``: the first ones, but for ``to``, whose places the rows ``source`` take."""
    layer: Any
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer | RoomyStates):
            layer.move(to, source, len(index_R))
        else:
            layer.reorder_cache(index_R)
