"""What a pass costs besides its tokens, and rows cut into passes accordingly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

from torch import nn

SMALL_PASS = 64
"""Upper bound of :func:`pass_overhead` on a CPU, where it is that of a small model."""
# The overhead on a CPU, in tokens, is _WEIGHT_TOKENS + _CALL_WEIGHTS / (number of weights): reading the weights and
# writing their gradients takes as long as 9 tokens; the calls take as long as one token of a model with 133 M weights.
# `python benchmarks/constants.py passes` measures it.
_CALL_WEIGHTS, _WEIGHT_TOKENS = 133_000_000, 9
# An estimate: nobody has run `python benchmarks/constants.py passes --device cuda` yet.
_PASS_TOKENS = {"cuda": 2048}
_weight_counts: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def pass_overhead(decoder: nn.Module, device_type: str | None = None) -> int:
    """The fixed cost of a forward and backward pass, in tokens that could run in the same time.

    Args:
        decoder: the model without its head.
        device_type: overrides the type of the device that the weights are on.
    """
    device_type = device_type or next(decoder.parameters()).device.type
    if device_type != "cpu":
        return _PASS_TOKENS.get(device_type, 512)
    if decoder not in _weight_counts:
        looked_up = cast(Any, decoder).get_input_embeddings().weight
        _weight_counts[decoder] = sum(p.numel() for p in decoder.parameters() if p is not looked_up)
    return min(SMALL_PASS, _WEIGHT_TOKENS + _CALL_WEIGHTS // max(1, _weight_counts[decoder]))


def pass_rows(lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Completions that continue from a cache, the longest first, cut into passes where padding would cost more.

    A completion's last token predicts nothing, so those of one token need no pass at all.
    """
    rows = sorted((row for row, length in enumerate(lengths) if length > 1), key=lambda row: -lengths[row])
    return cut_by_padding(rows, [lengths[row] for row in rows], overhead)


def cut_by_padding(rows: Sequence[int], lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Cut rows, sorted by length, where their padding would cost more than another pass."""
    runs: list[list[int]] = []
    longest = padding = 0
    for row, length in zip(rows, lengths, strict=True):
        padding += longest - length
        if not runs or padding > overhead:
            runs.append([])
            longest, padding = length, 0
        runs[-1].append(row)
    return runs
