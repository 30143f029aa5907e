"""What a pass costs besides its tokens, and rows cut into passes accordingly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

from torch import nn

SMALL_PASS = 64
"""What :func:`pass_overhead` is of a small model on a CPU."""
_PASS_TOKENS = {"cuda": 2048}
# On a CPU the calls take as long as the products of so many weights with a token; and weights are read, and their
# gradients written, in the time that these products take for 9 tokens.
_CALLS, _WEIGHTS = 133_000_000, 9
_weight_counts: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def pass_overhead(decoder: nn.Module, device_type: str | None = None) -> int:
    """How many tokens could be run in the time that a forward and backward pass takes beside its tokens.

    Args:
        decoder: what is run.
        device_type: where, if not where its weights are.
    """
    device_type = device_type or next(decoder.parameters()).device.type
    if device_type != "cpu":
        return _PASS_TOKENS.get(device_type, 512)
    if decoder not in _weight_counts:
        looked_up = cast(Any, decoder).get_input_embeddings().weight
        _weight_counts[decoder] = sum(one.numel() for one in decoder.parameters() if one is not looked_up)
    return min(SMALL_PASS, _WEIGHTS + _CALLS // max(1, _weight_counts[decoder]))


def pass_rows(lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Completions that continue from a cache, the longest first, cut into passes where padding would cost more.

    A completion's last token predicts nothing, so those of one token need no pass at all.
    """
    rows = sorted((row for row, length in enumerate(lengths) if length > 1), key=lambda row: -lengths[row])
    return cut_by_padding(rows, [lengths[row] for row in rows], overhead)


def cut_by_padding(rows: Sequence[int], lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Rows that are sorted by length, cut where their padding would come to cost more than another pass."""
    runs: list[list[int]] = []
    longest = padding = 0
    for row, length in zip(rows, lengths, strict=True):
        padding += longest - length
        if not runs or padding > overhead:
            runs.append([])
            longest, padding = length, 0
        runs[-1].append(row)
    return runs
