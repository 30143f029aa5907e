"""Tries an objective before a run depends on it."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.errors import ConfigError
from grpo_lightning.objectives.base import Objective

LENGTHS = (5, 3, 1, 4)


def check_objective(objective: Objective) -> None:
    """Try an objective on four short completions: together, and each alone.

    Its loss of a completion must not depend on other completions, nor on their padding: which ones share a
    micro-batch is a matter of memory.

    Raises:
        ConfigError: it depends on them, is not finite, has no gradient, or :meth:`Objective.terms` returns no terms.
    """
    whole_NT, gradient_NT = _loss(objective, slice(None), max(LENGTHS))
    name = type(objective).__name__
    if not (whole_NT.isfinite().all() and gradient_NT.isfinite().all()):
        raise ConfigError(f"{name}: its loss or gradient is not finite for ordinary log-probs")
    for row, length in enumerate(LENGTHS):
        alone_1T, alone_gradient_1T = _loss(objective, slice(row, row + 1), length)
        same = torch.allclose(alone_1T[0], whole_NT[row, :length])
        if not same or not torch.allclose(alone_gradient_1T[0], gradient_NT[row, :length]):
            raise ConfigError(
                f"{name}: its loss for a completion changes with the other completions in the batch, so the gradient "
                "would depend on max_tokens_per_microbatch: compute each row of terms from that row alone, without "
                "sums or means over rows"
            )


def _loss(objective: Objective, rows: slice, width: int) -> tuple[Tensor, Tensor]:
    """The loss of each token, and the gradient of their weighted sum in the log-probs."""
    size = len(LENGTHS) * max(LENGTHS)
    grid_NT = torch.arange(size, dtype=torch.float64, device="cpu").view(len(LENGTHS), max(LENGTHS))
    with torch.enable_grad():
        # Ratios from 0.6 to 1.7, beyond the usual clips on either side; weights that no two tokens share.
        logprobs_NT = (-1.5 + (1.3 * grid_NT).sin())[rows, :width].requires_grad_()
        old_NT = logprobs_NT.detach() + 0.5 * (2.1 * grid_NT).cos()[rows, :width]
        advantages_N = torch.tensor([1.0, -1.5, 0.5, -0.25], dtype=torch.float64, device="cpu")[rows]
        lengths_N = torch.tensor(LENGTHS, device="cpu")[rows]
        mask_NT = torch.arange(width, device="cpu") < lengths_N[:, None]
        loss_NT = objective(logprobs_NT, old_NT, advantages_N, mask_NT).loss_NT
        if not loss_NT.requires_grad:
            raise ConfigError(f"{type(objective).__name__}: its loss has no gradient: it must depend on logprobs_NT")
        weights_NT = 1 + grid_NT[rows, :width] / size
        (gradient_NT,) = torch.autograd.grad((loss_NT * weights_NT).sum(), logprobs_NT)
    return loss_NT.detach(), gradient_NT
