"""Group-relative advantages."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from grpo_lightning.functional._checks import check_choice
from grpo_lightning.functional.masking import masked_max, masked_mean, masked_std, masked_sum

AdvantageKind = Literal["group", "none-scaled", "batch-std", "leave_one_out"]


def group_advantages(
    rewards_BG: Tensor,
    *,
    kind: AdvantageKind = "group",
    eps: float = 1e-4,
    batch_std: Tensor | None = None,
) -> Tensor:
    """``rewards_BG`` -> advantages ``[B, G]`` in float32 (float64 for float64 rewards).

    With mean and (Bessel-corrected) std over the ``G`` completions of a prompt:

    - ``group``: ``A_i = (r_i - mean) / (std + eps)``. DeepSeekMath, arXiv 2402.03300, section 4.1.2.
    - ``none-scaled``: ``A_i = r_i - mean``. Dr. GRPO, arXiv 2503.20783.
    - ``batch-std``: ``A_i = (r_i - mean) / (std of all rewards of the batch + eps)``. Lite PPO, arXiv 2508.08221.
      Under data parallelism the std is that of the rows given, unless ``batch_std`` brings the one of all
      ranks. (REINFORCE++, arXiv 2501.03262, takes the std of the advantages instead; left out.)
    - ``leave_one_out``: ``A_i = r_i - mean of the other G - 1``. RLOO, arXiv 2402.14740; equals
      ``G / (G - 1) * (r_i - mean)``. The KL that RLOO puts into its reward is left to the caller.

    The papers leave three cases open. A NaN reward (the verifier broke) is left out of every statistic and gets 0. A
    group whose rewards are all equal gets exact zeros; the test is on equality, because the float mean of eight times
    0.1 is not 0.1. A group with fewer than two rewards gets zeros.

    ``eps`` keeps a group of nearly equal rewards from being blown up; 1e-4 as in TRL, none in the paper.
    """
    check_choice("kind", kind, AdvantageKind)
    if rewards_BG.dim() != 2:
        raise ValueError(f"rewards_BG must have two dimensions, prompts and group, but is {tuple(rewards_BG.shape)}.")
    if eps < 0:
        raise ValueError(f"eps must not be negative, but is {eps}.")
    if batch_std is not None and kind != "batch-std":
        raise ValueError(f"batch_std is only used by kind='batch-std', but kind is {kind!r}.")
    if rewards_BG.dtype != torch.float64:
        rewards_BG = rewards_BG.float()
    if rewards_BG.isinf().any():
        raise ValueError(
            "rewards_BG holds an infinite reward; a reward is a finite number, or NaN where none is known."
        )

    valid_BG = ~rewards_BG.isnan()
    mean_B1 = masked_mean(rewards_BG, valid_BG, dim=1).unsqueeze(1)
    if kind == "group":
        std_B1 = masked_std(rewards_BG, valid_BG, dim=1).unsqueeze(1)
        advantages_BG = (rewards_BG - mean_B1) / (std_B1 + eps)
    elif kind == "none-scaled":
        advantages_BG = rewards_BG - mean_B1
    elif kind == "batch-std":
        std = masked_std(rewards_BG, valid_BG) if batch_std is None else batch_std
        advantages_BG = (rewards_BG - mean_B1) / (std + eps)
    else:
        others_B1 = (valid_BG.sum(1, keepdim=True) - 1).clamp(min=1)
        total_B1 = masked_sum(rewards_BG, valid_BG, dim=1).unsqueeze(1)
        advantages_BG = rewards_BG - (total_B1 - rewards_BG) / others_B1

    # A single reward is its own maximum and minimum, so this covers groups of fewer than two as well.
    varied_B = masked_max(rewards_BG, valid_BG, dim=1) > -masked_max(-rewards_BG, valid_BG, dim=1)
    return torch.where(valid_BG & varied_B.unsqueeze(1), advantages_BG, 0)


def has_signal(advantages_BG: Tensor) -> Tensor:
    """``advantages_BG`` -> bool ``[B]``: True for a group that the policy gradient can learn from.

    ``any_i A_i != 0``. The gradient of a group without signal is exactly that of its KL term.
    """
    return (advantages_BG != 0).any(dim=1)
