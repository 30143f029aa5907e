"""Accumulate the gradients of vocabulary-sized weights directly into ``weight.grad``.

Autograd allocates a gradient as large as the weight at every use, and adds it to ``weight.grad`` afterwards. For an
embedding and a tied head of 65,536 x 2,048 that is twice 512 MiB per micro-batch. A backward pass that is known to end
in ``weight.grad`` can add to it directly (as Megatron-LM's fused gradient accumulation does).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_adding = False


@contextmanager
def adding_in_place() -> Iterator[None]:
    """Declare that backward passes inside are ``loss.backward()``.

    They must not be ``torch.autograd.grad``, which has no side effects. ``weight.grad`` comes out the same, up to the
    order of a sum.
    """
    global _adding  # Not a context variable: on a GPU, autograd runs backward passes on another thread.
    before, _adding = _adding, True
    try:
        yield
    finally:
        _adding = before


def sum_in_place(weight: Tensor) -> Tensor | None:
    """Return the tensor to which a backward pass adds the gradient of ``weight``, or ``None`` to leave it to autograd.

    The tensor is ``weight.grad``. Autograd does the work outside :func:`adding_in_place`, and where a hook expects the
    gradient.
    """
    hooks = weight._backward_hooks or weight._post_accumulate_grad_hooks
    if not _adding or not weight.is_leaf or hooks:
        return None
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


class InPlaceEmbedding(nn.Embedding):
    """An embedding whose gradient can be accumulated in place."""

    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not self.weight.requires_grad:
            return super().forward(input)
        embedded: Tensor = _Embedding.apply(self.weight, input, self.padding_idx)
        return embedded

    @staticmethod
    def replaces(module: nn.Module) -> bool:
        """Whether this class can replace ``module``: a plain ``nn.Embedding`` without options that this one lacks."""
        if type(module) is not nn.Embedding:
            return False
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, ids: Tensor, padding_id: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        # Not a saved tensor: saved-tensor hooks may return a different tensor, whose ``grad`` would be lost.
        ctx.weight_VD, ctx.padding_id = weight_VD, padding_id
        return nn.functional.embedding(ids, weight_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (ids,), weight_VD = ctx.saved_tensors, ctx.weight_VD
        padding_id = -1 if ctx.padding_id is None else ctx.padding_id
        total_VD = sum_in_place(weight_VD)
        if total_VD is None:
            return _embedding_grad(grad, ids, len(weight_VD), padding_id), None, None
        # Each token once, so that the sum does not depend on the order of threads.
        unique_U, inverse = ids.unique(return_inverse=True)
        grad_UD = _embedding_grad(grad, inverse, len(unique_U), -1)
        total_VD.index_add_(0, unique_U, grad_UD.masked_fill_((unique_U == padding_id)[:, None], 0))
        return None, None, None


def _embedding_grad(grad: Tensor, ids: Tensor, rows: int, padding_id: int) -> Tensor:
    return torch.ops.aten.embedding_dense_backward(grad, ids, rows, padding_id, False)
