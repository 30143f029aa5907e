"""Cutting the rows of an optimizer step into micro-batches by a budget of tokens."""

from __future__ import annotations

from torch import Tensor


def microbatches(lengths_N: Tensor, max_tokens: int) -> list[Tensor]:
    """Row indices of each micro-batch, together naming every row once.

    The rows are sorted by length, so that a micro-batch pads little, and cut where ``rows * longest row`` would pass
    the budget. A row that is longer than the budget gets a micro-batch of its own. Longest first: if the memory does
    not suffice, it shows at once.

    Args:
        lengths_N: tokens of each row, prompt and completion.
        max_tokens: the budget, padding included.
    """
    if not len(lengths_N):
        return []
    order_N = lengths_N.argsort(descending=True, stable=True)
    cuts, start = [], 0
    sorted_lengths = lengths_N[order_N].tolist()
    while start < len(sorted_lengths):
        rows = max(1, max_tokens // sorted_lengths[start])
        cuts.append(order_N[start : start + rows])
        start += rows
    return cuts
