"""Linear layers on few rows, as a decoding step has them once most completions have ended."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

LARGE = 2**18
"""Elements of a weight that no longer stays in a core's caches from one step to the next."""


def product(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a linear layer computes of ``[R, D]``, the fastest way round for few rows; any other layer as it is."""
    if type(module) is not nn.Linear:
        return module
    weight_FD, bias_F, few = module.weight, module.bias, few_rows(module.weight)

    def apply(inner_RD: Tensor) -> Tensor:
        rows = len(inner_RD)
        if rows > few:
            return nn.functional.linear(inner_RD, weight_FD, bias_F)
        # One row by itself is a product with a vector, which is slower than one with two rows.
        out_RF = (weight_FD @ (inner_RD.repeat(2, 1) if rows == 1 else inner_RD).T).T[:rows]
        return out_RF if bias_F is None else out_RF + bias_F

    return apply


def few_rows(weight_FD: Tensor) -> int:
    """Up to how many rows are multiplied the other way round, ``(W x^T)^T``: 0 where that does not pay.

    On a CPU, the library's product of a few rows with a float32 weight that lies in memory takes two to five times as
    long, where the weight has more rows than columns.
    """
    out, columns = weight_FD.shape
    plain = weight_FD.device.type == "cpu" and weight_FD.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")
    if not plain or weight_FD.numel() < LARGE or out < 2 * columns or columns > 1024:
        return 0
    return 8 if columns <= 768 else 4
