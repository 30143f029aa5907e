"""Group-relative advantages.

``rewards_BG`` holds the rewards of ``G`` completions for each of ``B`` prompts. NaN marks a missing reward (the
verifier failed, or a smaller group is padded): it is excluded from every statistic, and its advantage is 0. The papers
leave two more cases undefined. A group whose rewards are all equal gets exact zeros; the test is on equality, because
the float mean of eight times 0.1 is not 0.1. A group with fewer than two rewards gets zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.functional.masking import masked_max, masked_mean, masked_std, masked_sum


def unscaled_advantages(rewards_BG: Tensor) -> Tensor:
    """``rewards_BG`` -> advantages ``[B, G]``.

    ``A_i = r_i - mean of the group``. Dr. GRPO, arXiv 2503.20783.
    """
    return _where_varied(rewards_BG, _centred(rewards_BG))


def group_std_advantages(rewards_BG: Tensor, eps: float) -> Tensor:
    """``rewards_BG`` -> advantages ``[B, G]``.

    ``A_i = (r_i - mean) / (std + eps)``, with the mean and the Bessel-corrected std of the group. DeepSeekMath,
    arXiv 2402.03300, section 4.1.2, which has no ``eps``.
    """
    std_B1 = masked_std(rewards_BG, ~rewards_BG.isnan(), dim=1).unsqueeze(1)
    return _where_varied(rewards_BG, _centred(rewards_BG) / (std_B1 + eps))


def batch_std_advantages(rewards_BG: Tensor, std: Tensor, eps: float) -> Tensor:
    """``rewards_BG``, the ``std`` of all rewards of the batch -> advantages ``[B, G]``.

    ``A_i = (r_i - mean of the group) / (std + eps)``. Lite PPO, arXiv 2508.08221. (REINFORCE++, arXiv 2501.03262, takes
    the std of the advantages instead; not implemented.)
    """
    return _where_varied(rewards_BG, _centred(rewards_BG) / (std + eps))


def leave_one_out_advantages(rewards_BG: Tensor) -> Tensor:
    """``rewards_BG`` -> advantages ``[B, G]``.

    ``A_i = r_i - mean of the other G - 1``. RLOO, arXiv 2402.14740; equals ``G / (G - 1) * (r_i - mean)``. The KL that
    RLOO adds to its reward is left to the caller.
    """
    valid_BG = ~rewards_BG.isnan()
    others_B1 = (valid_BG.sum(1, keepdim=True) - 1).clamp(min=1)
    total_B1 = masked_sum(rewards_BG, valid_BG, dim=1).unsqueeze(1)
    return _where_varied(rewards_BG, rewards_BG - (total_B1 - rewards_BG) / others_B1)


def has_signal(advantages_BG: Tensor) -> Tensor:
    """``advantages_BG`` -> bool ``[B]``: True for a group that the policy gradient can learn from.

    ``any_i A_i != 0``. The gradient of a group without signal is exactly that of its KL term.
    """
    return (advantages_BG != 0).any(dim=1)


def _centred(rewards_BG: Tensor) -> Tensor:
    return rewards_BG - masked_mean(rewards_BG, ~rewards_BG.isnan(), dim=1).unsqueeze(1)


def _where_varied(rewards_BG: Tensor, advantages_BG: Tensor) -> Tensor:
    """Keep the advantages of valid rewards in groups whose rewards differ; return exact zeros elsewhere."""
    valid_BG = ~rewards_BG.isnan()
    # A single reward is its own maximum and minimum, so this covers groups of fewer than two as well.
    varied_B = masked_max(rewards_BG, valid_BG, dim=1) > -masked_max(-rewards_BG, valid_BG, dim=1)
    return torch.where(valid_BG & varied_B.unsqueeze(1), advantages_BG, 0)
