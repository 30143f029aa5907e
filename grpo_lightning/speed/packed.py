"""Linear layers as decoding uses them: a few rows at a time, with the same weights again and again.

On a CPU most of the time of a product of few rows goes into bringing the weight into the order that the library's
kernel wants, anew every time. With a copy that is in that order already it takes about half of the time.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

FEW = 16
"""Rows that the order is chosen for; it serves more and less as well."""
SMALL = 2**18
"""Elements of a weight up to which its order matters no more than a call: it may stay in a core's caches."""


def can_pack(lm: nn.Module) -> bool:
    """Whether decoding gains by packed weights: on a CPU, in float32."""
    weight = next(lm.parameters())
    plain = weight.device.type == "cpu" and weight.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")
    return plain and has_operators()


def products(modules: Sequence[nn.Module], pack: bool) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """What some layers make of the same ``[R, D]``: a tuple of ``[R, F]``.

    Args:
        modules: linear layers that read the same, in one product if they are packed; others are called as they are.
        pack: make a packed copy of the weights, where that pays.
    """
    linear = [module for module in modules if type(module) is nn.Linear and module.weight.dtype is torch.float32]
    sizes = [module.out_features for module in linear]
    if not pack or len(linear) < len(modules) or sum(sizes) * linear[0].in_features <= SMALL:
        return lambda inner_RD: tuple(module(inner_RD) for module in modules)
    weights = [module.weight for module in linear]
    packed = _packed(weights[0] if len(weights) == 1 else torch.cat(weights))
    bias_F = None
    if any(module.bias is not None for module in linear):
        bias_F = torch.cat(
            [module.weight.new_zeros(module.out_features) if module.bias is None else module.bias for module in linear]
        )

    def apply(inner_RD: Tensor) -> tuple[Tensor, ...]:
        rows = len(inner_RD)
        if missing := filled_up(rows) - rows:
            inner_RD = nn.functional.pad(inner_RD, (0, 0, 0, missing))
        return _product(inner_RD, packed, bias_F)[:rows].split(sizes, 1)

    return apply


def filled_up(rows: int) -> int:
    """How many rows are multiplied in the place of some: 4, 8, 12, 16, 24, 32, 48, 64, 96, ...

    For every number of rows that it meets, the library makes a kernel, which takes 2 ms and 0.6 MiB, and keeps it.
    """
    step = max(4, 1 << max(0, (rows - 1).bit_length() - 2))
    return -(-rows // step) * step


def product(module: nn.Module, pack: bool) -> Callable[[Tensor], Tensor]:
    """What one layer makes of ``[R, D]``; see :func:`products`."""
    apply = products([module], pack)
    return lambda inner_RD: apply(inner_RD)[0]


# Operators that torch.compile lays out a frozen model's weights with on a CPU. They have no public name.


def _packed(weight_FD: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight_FD.detach(), FEW)


def _product(inner_RD: Tensor, packed_FD: Tensor, bias_F: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(inner_RD, packed_FD, bias_F, "none", [], "")


@functools.cache
def has_operators() -> bool:
    """Tried on a small product: without the operators, decoding multiplies as the layers do."""
    generator = torch.Generator().manual_seed(0)
    inner_RD, weight_FD = (torch.randn(rows, 64, generator=generator, dtype=torch.float32) for rows in (5, 96))
    try:
        found = _product(inner_RD, _packed(weight_FD), None)
    except (AttributeError, RuntimeError) as error:
        log.info("rollouts multiply by the weights as they are, which packed ones would do faster: %s", error)
        return False
    return torch.allclose(found, inner_RD @ weight_FD.T, atol=1e-3)
