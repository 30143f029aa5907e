"""Masked reductions. ``mask`` is boolean, True where a value counts.

Values at masked positions (NaN and infinity included) change neither result nor gradient, because ``torch.where``
replaces them before any arithmetic; multiplying by the mask would not do, since ``0 * inf`` is NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.functional._checks import check_mask, check_same_shape


def length_mask(lengths_N: Tensor, width: int | None = None) -> Tensor:
    """Return ``mask_NT``: True at the first ``lengths_N`` positions of a row. ``T`` is ``width`` or the longest row."""
    if width is None:
        width = int(lengths_N.max()) if len(lengths_N) else 0
    return torch.arange(width, device=lengths_N.device) < lengths_N[:, None]


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """``values`` and ``mask`` of one shape -> that shape without ``dim`` (a scalar for ``dim=None``).

    ``sum_{i: mask_i} values_i``; 0 where the mask is empty.
    """
    check_mask(mask)
    check_same_shape(values=values, mask=mask)
    return torch.where(mask, values, 0).sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """``values`` and ``mask`` of one shape -> that shape without ``dim`` (a scalar for ``dim=None``).

    ``sum_{i: mask_i} values_i / |mask|``; 0 where the mask is empty.
    """
    return masked_sum(values, mask, dim) / mask.sum(dim).clamp(min=1)


def masked_max(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """``values`` and ``mask`` of one shape -> that shape without ``dim`` (a scalar for ``dim=None``).

    ``max_{i: mask_i} values_i``; 0 where the mask is empty.
    """
    check_mask(mask)
    check_same_shape(values=values, mask=mask)
    if values.numel() == 0:
        return values.sum(dim)  # amax rejects an empty tensor; the sum has the right shape and value
    dims = () if dim is None else dim
    maxima = torch.where(mask, values, -torch.inf).amax(dims)
    return torch.where(mask.any() if dim is None else mask.any(dim), maxima, 0)


def masked_std(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """``values`` and ``mask`` of one shape -> that shape without ``dim`` (a scalar for ``dim=None``).

    ``sqrt( sum_{i: mask_i} (values_i - mean)^2 / (|mask| - 1) )``, Bessel-corrected as ``torch.std`` is; 0 where fewer
    than two values count. A statistic, not meant to be differentiated: the slope of the square root at 0 is infinite.
    """
    mean = masked_mean(values, mask, dim)
    deviations = torch.where(mask, values - (mean if dim is None else mean.unsqueeze(dim)), 0)
    return (deviations.square().sum(dim) / (mask.sum(dim) - 1).clamp(min=1)).sqrt()
