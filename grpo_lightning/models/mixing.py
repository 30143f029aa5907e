"""Weights, and low-rank adapters, mixed: how a reference moves towards the policy."""

from __future__ import annotations

import torch
from torch import Tensor


def mix(reference: dict[str, Tensor], policy: dict[str, Tensor], alpha: float) -> None:
    """``reference <- alpha * policy + (1 - alpha) * reference`` in place, tensor by tensor (arXiv 2404.09656).

    With ``alpha`` 1 the values are copied, bit for bit. Low-rank factors ``lora_A`` and ``lora_B`` are mixed as the
    product that they represent, see :func:`mixed_factors`.

    Args:
        reference: tensors by name.
        policy: tensors of the same names and shapes.
        alpha: from 0 to 1.
    """
    for name, theirs in reference.items():
        ours = policy[name]
        if alpha == 1 or not theirs.is_floating_point():
            theirs.copy_(ours)
        elif "lora_A" in name or "lora_embedding_A" in name:
            partner = name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
            down, up = mixed_factors(
                (ours.flatten(1), policy[partner].flatten(1)), (theirs.flatten(1), reference[partner].flatten(1)), alpha
            )
            theirs.copy_(down.view_as(theirs))
            reference[partner].copy_(up.view_as(reference[partner]))
        elif "lora_B" not in name and "lora_embedding_B" not in name:
            theirs.lerp_(ours.to(theirs.dtype), alpha)


def mixed_factors(
    policy: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor], alpha: float
) -> tuple[Tensor, Tensor]:
    """Factors of rank r nearest to ``alpha B_p A_p + (1 - alpha) B_r A_r``.

    That sum has a rank of up to 2r. The truncated singular value decomposition is its best approximation of rank r
    (Eckart and Young), hence never further off than mixing A and B apart, which adds
    ``- alpha (1 - alpha) (B_p - B_r)(A_p - A_r)``. It is exact where the sum has rank r, as it has at the first move
    away from a fresh adapter, whose B is 0.

    Args:
        policy: ``A_rI`` and ``B_Or``, of rank r between ``I`` inputs and ``O`` outputs.
        reference: the same of the reference.
        alpha: the policy's share.

    Returns:
        ``A_rI`` and ``B_Or``, float32.
    """
    (down_p, up_p), (down_r, up_r) = policy, reference
    up = torch.cat([alpha * up_p.float(), (1 - alpha) * up_r.float()], dim=1)
    down = torch.cat([down_p.float(), down_r.float()], dim=0)
    # Of up @ down, whose full size is never built: both are reduced to a triangle first.
    up_q, up_triangle = torch.linalg.qr(up)
    down_q, down_triangle = torch.linalg.qr(down.T)
    left, values, right = torch.linalg.svd(up_triangle @ down_triangle.T, full_matrices=False)
    rank = len(down_p)
    root = values[:rank].sqrt()
    # Between few inputs or outputs there are fewer than r values; the rest of the rank is not needed.
    new_down = down.new_zeros(down_p.shape)
    new_up = up.new_zeros(up_p.shape)
    new_down[: len(root)] = root[:, None] * (right[:rank] @ down_q.T)
    new_up[:, : len(root)] = (up_q @ left[:, :rank]) * root
    return new_down, new_up
