"""Packed copies of weights for decoding on a CPU: a few rows at a time, with the same weights again and again.

Most of the time of a product with few rows goes into bringing the weight into the layout that the library's kernel
wants, at every call. With a copy that has this layout it takes about half of the time. The copy has the type of the
product: in bfloat16, also of float32 weights under autocast, it takes half of that again where the CPU has instructions
for it. A small weight in float32 is transposed instead, which its kernel reads as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from grpo_lightning.speed.base import Shortcut

# `python benchmarks/constants.py packing` compares layers with their packed copies over sizes, layouts and rows.
PACK_ROWS = 16
"""Number of rows that the layout is chosen for; it serves more and fewer rows as well."""
MIN_PACKED_ELEMENTS = 2**16
"""Smaller weights in bfloat16 are not packed, which gains no more than the extra calls cost."""
MAX_TRANSPOSED_ELEMENTS = 3 * 2**18
"""Weights in float32 up to this size are transposed, larger ones packed."""


class PackedWeights(Shortcut):
    """Rollouts multiply by packed or transposed copies of the weights. The plain way calls the layers."""

    name = "packed_weights"
    runs = "grpo_lightning.speed.packed:product_by_copy"
    for_decoding = True

    def wrong_device(self, device_type: str) -> str | None:
        return None if device_type == "cpu" else "it is for CPUs"

    def unsuitable(self, lm: nn.Module) -> str | None:
        weight = next(lm.parameters())
        dtype = product_dtype(weight)
        if dtype not in (torch.float32, torch.bfloat16):
            return f"it is for float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
        if not has_operators(dtype):
            return "this build of torch has no operators for it, or not for this CPU"
        return None


def product_dtype(weight_FD: Tensor) -> torch.dtype:
    """The type in which a layer on a CPU multiplies: that of autocast, or the weight's."""
    if torch.is_autocast_enabled("cpu") and weight_FD.dtype is not torch.float64:
        return torch.get_autocast_dtype("cpu")
    return weight_FD.dtype


def fused_linear(modules: Sequence[nn.Module], pack: bool) -> Callable[[Tensor], Sequence[Tensor]]:
    """Several layers applied to the same ``[R, D]``: one ``[R, F]`` each.

    Args:
        modules: linear layers, which are one product if they are packed; others are called as they are.
        pack: multiply by a copy of the weights, where that pays.
    """
    layers = [module for module in modules if type(module) is nn.Linear]
    if not pack or len(layers) < len(modules) or not _pays(layers):
        return lambda inner_RD: [module(inner_RD) for module in modules]
    product, sizes = product_by_copy(layers), [layer.out_features for layer in layers]
    return lambda inner_RD: product(inner_RD).split_with_sizes(sizes, 1)


def linear(module: nn.Module, pack: bool) -> Callable[[Tensor], Tensor]:
    """One layer applied to ``[R, D]``; see :func:`fused_linear`."""
    return product_by_copy([module]) if pack and type(module) is nn.Linear and _pays([module]) else module


def _pays(layers: Sequence[nn.Linear]) -> bool:
    return product_dtype(layers[0].weight) is torch.float32 or _elements(layers) > MIN_PACKED_ELEMENTS


def _elements(layers: Sequence[nn.Linear]) -> int:
    return sum(layer.weight.numel() for layer in layers)


def product_by_copy(layers: Sequence[nn.Linear]) -> Callable[[Tensor], Tensor]:
    """What applies layers to ``[R, D]``, by a copy of their weights: ``[R, F]``, the results side by side."""
    dtype = product_dtype(layers[0].weight)
    weights = [layer.weight.detach().to(dtype) for layer in layers]
    weight_FD = weights[0] if len(weights) == 1 else torch.cat(weights)
    bias_F = None
    if any(layer.bias is not None for layer in layers):
        bias_F = torch.cat(
            [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
        ).to(dtype)
    if dtype is torch.float32 and weight_FD.numel() <= MAX_TRANSPOSED_ELEMENTS:
        weight_DF = weight_FD.T.contiguous()
        if bias_F is None:
            return lambda inner_RD: inner_RD.to(dtype) @ weight_DF
        return lambda inner_RD: torch.addmm(bias_F, inner_RD.to(dtype), weight_DF)
    packed_FD = _packed(weight_FD)
    return lambda inner_RD: _packed_linear(inner_RD.to(dtype), packed_FD, bias_F)


def padded_rows(rows: int) -> int:
    """Number of rows that are multiplied instead: 4, 8, 12, 16, 24, 32, 48, 64, 96, ...

    For every number of rows the library makes a kernel, which takes 2 ms and 0.6 MiB, and keeps it.
    """
    step = max(4, 1 << max(0, (rows - 1).bit_length() - 2))
    return -(-rows // step) * step


def _packed_linear(inner_RD: Tensor, packed_FD: Tensor, bias_F: Tensor | None) -> Tensor:
    rows = len(inner_RD)
    if missing := padded_rows(rows) - rows:
        inner_RD = nn.functional.pad(inner_RD, (0, 0, 0, missing))
    return _product(inner_RD, packed_FD, bias_F)[:rows]


# Operators that torch.compile lays out a frozen model's weights with on a CPU. They have no public name.


def _packed(weight_FD: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight_FD, PACK_ROWS)


def _product(inner_RD: Tensor, packed_FD: Tensor, bias_F: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(inner_RD, packed_FD, bias_F, "none", [], "")


@functools.cache
def has_operators(dtype: torch.dtype) -> bool:
    """Whether torch has the operators for a type on this CPU, and a small product by them is right."""
    inner_RD, weight_FD = (
        torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows), device="cpu").to(dtype) for rows in (5, 96)
    )
    try:
        found = _product(inner_RD, _packed(weight_FD), None)
    except (AttributeError, RuntimeError):
        return False
    with torch.autocast("cpu", enabled=False):  # a run in bf16-mixed may be what asks
        expected = inner_RD.float() @ weight_FD.float().T
    return torch.allclose(found.float(), expected, atol=1e-3 if dtype is torch.float32 else 0.5)
